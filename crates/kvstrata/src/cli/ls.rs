//! `kvstrata ls`: what a store holds.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kvstrata_core::{Layout, LayoutId};
use kvstrata_disk::Manifest;
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::Found;
use serde::Serialize;

use super::{report, store_path};

/// List the objects of a store
///
/// One line per object: payload bytes, digest, layout, key. Keys are written model@rank@group@hash, with @salt where there
/// is one. The list comes from the index; headers are read where that is missing or old, payloads never. Nothing is
/// changed. A store that is in use is refused.
///
/// Example: kvstrata ls /var/cache/kv --model org/model --limit 20
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// The store's directory
    path: PathBuf,
    /// No more than so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Only those of this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Write them here as JSON instead (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize, Debug)]
struct Entry {
    key: String,
    model: String,
    bytes: u64,
    layout: String,
    digest: Option<String>,
}

#[derive(Serialize, Debug)]
struct Listing {
    schema_version: u32,
    path: PathBuf,
    objects: u64,
    bytes: u64,
    /// Files under objects' names that are bad.
    bad: u64,
    /// Whether the limit left something out.
    more: bool,
    entries: Vec<Entry>,
}

/// Layouts by what objects keep of them: those of the models that the store describes, and plain bytes.
struct Layouts(HashMap<LayoutId, Layout>);

impl Layouts {
    fn name(&mut self, found: &Found) -> String {
        let Some(id) = found.layout else { return "?".into() };
        if let Some(layout) = self.0.get(&id) {
            return format!("{layout:?}");
        }
        match Layout::opaque(found.len) {
            Ok(plain) if plain.id() == id => {
                let name = format!("{plain:?}");
                self.0.insert(id, plain);
                name
            }
            _ => format!("{id:?}"),
        }
    }
}

pub(crate) fn run(args: LsArgs) -> Result<bool> {
    store_path::check(&args.path, false)?;
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
    let _lock = store_path::lock(&disk, &args.path)?;
    let manifest = Manifest::read(&disk, &args.path).with_context(|| {
        format!("the store cannot be read; see what `kvstrata fsck {}` says", args.path.display())
    })?;
    let described = manifest.into_iter().flat_map(|m| m.namespaces).map(|n| (n.layout.id(), n.layout));
    let mut layouts = Layouts(described.collect());
    let mut listing = Listing {
        schema_version: 1,
        path: args.path.clone(),
        objects: 0,
        bytes: 0,
        bad: 0,
        more: false,
        entries: Vec::new(),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    kvstrata_disk::list(&disk, &args.path, |shown| {
        let Ok((key, found)) = shown else {
            listing.bad += 1;
            return ControlFlow::Continue(());
        };
        let model = key.scope().model();
        if args.model.as_ref().is_some_and(|wanted| wanted != model) {
            return ControlFlow::Continue(());
        }
        if args.limit == Some(listing.objects) {
            listing.more = true;
            return ControlFlow::Break(());
        }
        listing.objects += 1;
        listing.bytes += found.len;
        let entry = Entry {
            model: model.to_owned(),
            key: key.to_string(),
            bytes: found.len,
            layout: layouts.name(&found),
            digest: found.digest.map(|d| format!("{d:?}")),
        };
        if args.json.is_some() {
            listing.entries.push(entry);
            return ControlFlow::Continue(());
        }
        let digest = entry.digest.as_deref().unwrap_or("-");
        written = writeln!(out, "{:>12}  {digest:<16}  {:<24}  {}", entry.bytes, entry.layout, entry.key);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    match written.and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
        done => done.context("write the list")?,
    }
    drop(out);
    if let Some(path) = &args.json {
        report::write_json(path, &listing)?;
    }
    let more = if listing.more { ", and more" } else { "" };
    eprintln!("{} objects of {}{more}", listing.objects, report::bytes(listing.bytes));
    if listing.bad > 0 {
        eprintln!("{} bad files beside them: kvstrata fsck {}", listing.bad, args.path.display());
    }
    Ok(true)
}
