//! Every arrow between crates against `docs/dag.toml`, so that the picture cannot drift from the code.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Deserialize;

use crate::findings::Findings;
use crate::workspace::{Package, Workspace};

const FILE: &str = "docs/dag.toml";

/// What the file says of one package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    level: u8,
    #[serde(default)]
    normal: BTreeSet<String>,
    /// Those of `normal` that are on the same level, each for a reason the file gives.
    #[serde(default)]
    beside: BTreeSet<String>,
    #[serde(default)]
    dev: BTreeSet<String>,
}

type Picture = BTreeMap<String, Listed>;

/// The check.
pub(crate) fn run(workspace: &Workspace, findings: &mut Findings) -> Result<()> {
    compare(&workspace.packages, &workspace.toml(FILE)?, findings);
    Ok(())
}

fn compare(packages: &[Package], picture: &Picture, findings: &mut Findings) {
    let mut arrows = 0;
    for package in packages {
        let name = &package.name;
        let Some(listed) = picture.get(name) else {
            let normal: Vec<_> = package.normal.iter().collect();
            let dev: Vec<_> = package.dev.iter().collect();
            findings.fail(
                FILE,
                format_args!(
                    "'{name}' is not in the picture. Add a table [{name}] with its level, normal = {normal:?}, dev = {dev:?}"
                ),
            );
            continue;
        };
        arrows += package.normal.len() + package.dev.len();
        drift(name, "normal", &package.normal, &listed.normal, findings);
        drift(name, "dev", &package.dev, &listed.dev, findings);
        levels(name, listed, picture, findings);
    }
    for name in picture.keys().filter(|name| !packages.iter().any(|p| &p.name == *name)) {
        findings.fail(FILE, format_args!("there is no package '{name}'. Remove its table"));
    }
    findings.note(format_args!("{} packages and {arrows} arrows", packages.len()));
}

fn drift(
    from: &str,
    kind: &str,
    found: &BTreeSet<String>,
    listed: &BTreeSet<String>,
    findings: &mut Findings,
) {
    let table = if kind == "dev" { "dev-dependencies" } else { "dependencies" };
    for to in found.difference(listed) {
        findings.fail(
            FILE,
            format_args!(
                "+ {from} -> {to} ({kind}) is not in the picture. Drop it from the crate's [{table}], or, if the design \
                 wants it, add \"{to}\" to {kind} in [{from}]"
            ),
        );
    }
    for to in listed.difference(found) {
        findings.fail(
            FILE,
            format_args!("- {from} -> {to} ({kind}) does not exist. Remove \"{to}\" from {kind} in [{from}]"),
        );
    }
}

fn levels(from: &str, listed: &Listed, picture: &Picture, findings: &mut Findings) {
    for to in &listed.normal {
        // A name that is nowhere is reported as an arrow that does not exist.
        let Some(target) = picture.get(to) else { continue };
        let (high, low) = (listed.level, target.level);
        if low > high {
            findings.fail(
                FILE,
                format_args!(
                    "{from} (level {high}) -> {to} (level {low}) goes up. Move what {from} needs down, or pass it in"
                ),
            );
        } else if low == high && !listed.beside.contains(to) {
            findings.fail(
                FILE,
                format_args!(
                    "{from} -> {to} stays on level {high}. Arrows go down; one that must not is named in beside in \
                     [{from}], with the reason above it"
                ),
            );
        }
    }
    for to in &listed.beside {
        if !listed.normal.contains(to) || picture.get(to).is_none_or(|t| t.level != listed.level) {
            findings.fail(
                FILE,
                format_args!("beside in [{from}] names \"{to}\", which is no arrow on its level. Remove it"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, normal: &[&str], dev: &[&str]) -> Package {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Package { name: name.into(), normal: set(normal), dev: set(dev), ..Package::default() }
    }

    fn found(packages: &[Package], picture: &str) -> Vec<String> {
        let mut findings = Findings::default();
        compare(packages, &toml::from_str(picture).unwrap(), &mut findings);
        findings.failures().to_vec()
    }

    #[test]
    fn a_true_picture_passes() {
        let packages = [package("a", &[], &["kit"]), package("b", &["a"], &[]), package("kit", &["a"], &[])];
        let picture = "[a]\nlevel = 0\ndev = ['kit']\n[b]\nlevel = 1\nnormal = ['a']\n\
                       [kit]\nlevel = 0\nnormal = ['a']\nbeside = ['a']";
        assert_eq!(found(&packages, picture), [""; 0]);
    }

    #[test]
    fn arrows_that_are_not_drawn_or_not_there_are_found_by_kind() {
        let packages = [package("a", &[], &[]), package("b", &["a"], &[])];
        let failures = found(&packages, "[a]\nlevel = 0\n[b]\nlevel = 1\ndev = ['a']");
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].contains("+ b -> a (normal)"), "{failures:?}");
        assert!(failures[1].contains("- b -> a (dev)"), "{failures:?}");
    }

    #[test]
    fn packages_that_are_not_drawn_or_not_there_are_found() {
        let failures = found(&[package("a", &[], &[])], "[b]\nlevel = 0");
        assert!(failures[0].contains("'a' is not in the picture"), "{failures:?}");
        assert!(failures[1].contains("no package 'b'"), "{failures:?}");
    }

    #[test]
    fn arrows_go_down() {
        let packages = [package("a", &["b"], &[]), package("b", &["c"], &[]), package("c", &[], &[])];
        let failures = found(
            &packages,
            "[a]\nlevel = 0\nnormal = ['b']\n[b]\nlevel = 1\nnormal = ['c']\n[c]\nlevel = 1",
        );
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].contains("a (level 0) -> b (level 1) goes up"), "{failures:?}");
        assert!(failures[1].contains("b -> c stays on level 1"), "{failures:?}");
    }
}
