//! What each library crate pulls in against `docs/deps.toml`: a new package in somebody's build is a decision.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::findings::Findings;
use crate::workspace::{Package, Workspace, cargo};

const FILE: &str = "docs/deps.toml";
/// The trees are those of this target wherever the check runs; other targets swap some packages for others.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    /// Per library crate the packages it names itself.
    direct: BTreeMap<String, BTreeSet<String>>,
    /// Per package that some crate names, what it brings along.
    brings: BTreeMap<String, BTreeSet<String>>,
    /// Per crate the most packages its tree may have, its own and the workspace's not counted.
    at_most: BTreeMap<String, usize>,
}

/// What `cargo tree` says of one crate as a library, with all features that are about the library.
#[derive(Debug)]
struct Tree {
    /// What it names itself, and itself.
    direct: BTreeSet<String>,
    all: BTreeSet<String>,
}

/// The check.
pub(crate) fn run(workspace: &Workspace, findings: &mut Findings) -> Result<()> {
    let mut trees = BTreeMap::new();
    for package in workspace.packages.iter().filter(|p| p.is_library_crate()) {
        let tree = |depth| tree(workspace, package, depth);
        trees.insert(package.name.clone(), Tree { direct: tree(Some("1"))?, all: tree(None)? });
    }
    let ours: BTreeSet<String> = workspace.packages.iter().map(|p| p.name.clone()).collect();
    compare(&ours, &trees, &workspace.toml(FILE)?, findings);
    Ok(())
}

/// The names in the crate's tree on [`TARGET`], build scripts aside; `depth` as cargo takes it.
fn tree(workspace: &Workspace, package: &Package, depth: Option<&str>) -> Result<BTreeSet<String>> {
    let features: Vec<&str> = package.features.iter().map(String::as_str).collect();
    let mut command = cargo();
    command
        .args(["tree", "--locked", "--package", &package.name, "--edges", "normal", "--target", TARGET])
        .args(["--no-default-features", "--features", &features.join(",")])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(&workspace.root);
    if let Some(depth) = depth {
        command.args(["--depth", depth]);
    }
    let output = command.output().context("could not start cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree of {} failed:\n{}", package.name, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout).context("cargo tree printed no text")?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// `ours` are the packages of this workspace.
fn compare(
    ours: &BTreeSet<String>,
    trees: &BTreeMap<String, Tree>,
    allowed: &Allowed,
    findings: &mut Findings,
) {
    let mut seen = BTreeSet::new();
    for (name, tree) in trees {
        let listed = allowed.direct.get(name).cloned().unwrap_or_default();
        let direct: BTreeSet<String> = tree.direct.difference(ours).cloned().collect();
        for new in direct.difference(&listed) {
            findings.fail(
                FILE,
                format_args!(
                    "{name} names the package '{new}'. Drop it, or, if it is worth it, add \"{new}\" to {name} in [direct]"
                ),
            );
        }
        for stale in listed.difference(&direct) {
            findings.fail(
                FILE,
                format_args!("{name} does not name '{stale}'. Remove it from {name} in [direct]"),
            );
        }
        // What the crates below name is theirs to answer for, allowed or not.
        let below = trees.iter().filter(|(other, _)| tree.all.contains(*other));
        let named: BTreeSet<&String> = below.flat_map(|(_, t)| &t.direct).collect();
        let tree: BTreeSet<&String> = tree.all.difference(ours).collect();
        let brought =
            |n: &str| named.iter().any(|d| allowed.brings.get(d.as_str()).is_some_and(|b| b.contains(n)));
        for new in tree.iter().filter(|n| !named.contains(*n) && !brought(n.as_str())) {
            findings.fail(
                FILE,
                format_args!(
                    "{name} pulls in '{new}', which nothing it names may bring. `cargo tree -p {name} -i {new}` says who \
                     does; add \"{new}\" there in [brings] if it may"
                ),
            );
        }
        if let Some(&most) = allowed.at_most.get(name).filter(|most| tree.len() > **most) {
            findings.fail(
                FILE,
                format_args!("{name} pulls in {} packages, at most {most} may be: {tree:?}", tree.len()),
            );
        }
        seen.extend(tree);
    }
    for name in allowed.direct.keys().chain(allowed.at_most.keys()).filter(|n| !trees.contains_key(*n)) {
        findings.fail(FILE, format_args!("'{name}' is no library crate. Remove it"));
    }
    for (by, brought) in &allowed.brings {
        for stale in brought.iter().chain([by]).filter(|n| !seen.contains(n)) {
            findings.fail(
                FILE,
                format_args!("nobody pulls in '{stale}' any more. Remove it from {by} in [brings]"),
            );
        }
    }
    findings.note(format_args!("{} library crates and {} packages from elsewhere", trees.len(), seen.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str], all: &[&str], allowed: &str) -> Vec<String> {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let tree = |direct, all| Tree { direct: set(direct), all: set(all) };
        let trees = BTreeMap::from([
            ("low".into(), tree(&["low", "libc"], &["low", "libc"])),
            ("top".into(), tree(names, all)),
        ]);
        let mut findings = Findings::default();
        compare(&set(&["low", "top"]), &trees, &toml::from_str(allowed).unwrap(), &mut findings);
        findings.failures().to_vec()
    }

    const ALLOWED: &str =
        "[direct]\nlow = ['libc']\ntop = ['blake3']\n[brings]\nblake3 = ['arrayvec']\n[at_most]\ntop = 3";

    #[test]
    fn what_is_allowed_passes_with_what_the_crates_below_bring() {
        let tree = ["top", "low", "libc", "blake3", "arrayvec"];
        assert_eq!(found(&["blake3"], &tree, ALLOWED), [""; 0]);
    }

    #[test]
    fn a_new_package_is_found_whether_named_or_brought() {
        let tree = ["top", "low", "libc", "blake3", "arrayvec", "syn"];
        let failures = found(&["blake3"], &tree, ALLOWED);
        assert!(failures[0].contains("top pulls in 'syn'"), "{failures:?}");
        assert!(failures[1].contains("pulls in 4 packages, at most 3"), "{failures:?}");
        let tree = ["top", "low", "libc", "blake3", "arrayvec"];
        let failures = found(&["blake3", "libc"], &tree, ALLOWED);
        assert!(failures[0].contains("top names the package 'libc'"), "{failures:?}");
    }

    #[test]
    fn what_nobody_needs_any_more_is_found() {
        let failures = found(&[], &["top", "low", "libc"], ALLOWED);
        assert!(failures[0].contains("top does not name 'blake3'"), "{failures:?}");
        assert!(failures[1].contains("nobody pulls in 'arrayvec'"), "{failures:?}");
    }
}
