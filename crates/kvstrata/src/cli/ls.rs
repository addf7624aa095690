//! `kvstrata ls`: what a store holds.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

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
/// changed. A store that is in use is refused. Several directories of one adapter are listed one after the other; an object
/// that lies in more than one of them is listed once.
///
/// Example: kvstrata ls /var/cache/kv --model org/model --limit 20
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// The store's directory, or several
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
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
    paths: Vec<PathBuf>,
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
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
    // All are looked at before anything is said of one.
    let mut stores = Vec::with_capacity(args.paths.len());
    for path in &args.paths {
        store_path::check(path, false)?;
        stores.push((path, store_path::lock(&disk, path)?));
    }
    let mut listing = Listing {
        schema_version: 2,
        paths: args.paths.clone(),
        objects: 0,
        bytes: 0,
        bad: 0,
        more: false,
        entries: Vec::new(),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    // Kept only where a second path may have the same.
    let mut seen = (stores.len() > 1).then(HashSet::new);
    for (path, _lock) in &stores {
        let bad = listing.bad;
        match list(&disk, path, &args, &mut listing, &mut seen, &mut out)? {
            // Whoever reads has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
            done => done.context("write the list")?,
        }
        if listing.bad > bad {
            eprintln!("{} bad files: kvstrata fsck {}", listing.bad - bad, path.display());
        }
        if listing.more {
            break;
        }
    }
    drop(out);
    if let Some(path) = &args.json {
        report::write_json(path, &listing)?;
    }
    let more = if listing.more { ", and more" } else { "" };
    let s = if listing.objects == 1 { "" } else { "s" };
    eprintln!("{} object{s} of {}{more}", listing.objects, report::bytes(listing.bytes));
    Ok(true)
}

/// Lists one store. The inner result is that of writing.
fn list(
    disk: &OsDisk,
    path: &Path,
    args: &LsArgs,
    listing: &mut Listing,
    seen: &mut Option<HashSet<[u8; 32]>>,
    out: &mut impl Write,
) -> Result<io::Result<()>> {
    let manifest = Manifest::read(disk, path).with_context(|| {
        format!("the store cannot be read; see what `kvstrata fsck {}` says", path.display())
    })?;
    let described = manifest.into_iter().flat_map(|m| m.namespaces).map(|n| (n.layout.id(), n.layout));
    let mut layouts = Layouts(described.collect());
    let mut written = Ok(());
    kvstrata_disk::list(disk, path, |shown| {
        let Ok((key, found)) = shown else {
            listing.bad += 1;
            return ControlFlow::Continue(());
        };
        let model = key.scope().model();
        if args.model.as_ref().is_some_and(|wanted| wanted != model)
            || seen.as_mut().is_some_and(|seen| !seen.insert(*key.fingerprint256()))
        {
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
    Ok(written.and_then(|()| out.flush()))
}
