//! The workspace as cargo sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Every package of the workspace.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Where the root manifest lies.
    pub(crate) root: PathBuf,
    /// In order of name.
    pub(crate) packages: Vec<Package>,
}

/// One package.
#[derive(Clone, Debug, Default)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its folder, relative to the root.
    pub(crate) dir: PathBuf,
    /// The root files of its library and binaries, relative to the root.
    pub(crate) lib: Option<PathBuf>,
    pub(crate) bins: Vec<PathBuf>,
    /// Packages of this workspace that it needs to be built, and only to be tested.
    pub(crate) normal: BTreeSet<String>,
    pub(crate) dev: BTreeSet<String>,
    /// Packages from elsewhere that it needs to be built.
    pub(crate) external: BTreeSet<String>,
    /// The features that are about the library: not `default`, and not those that only a program asks for.
    pub(crate) features: BTreeSet<String>,
}

impl Package {
    /// Whether others build on it: it has a library in `crates/`.
    pub(crate) fn is_library_crate(&self) -> bool {
        self.dir.starts_with("crates") && self.lib.is_some()
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<RawPackage>,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct RawPackage {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<RawDependency>,
    targets: Vec<RawTarget>,
    #[serde(default)]
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct RawDependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct RawTarget {
    kind: Vec<String>,
    src_path: PathBuf,
    #[serde(default, rename = "required-features")]
    required: Vec<String>,
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

impl Workspace {
    /// Asks cargo, without the network.
    pub(crate) fn load() -> Result<Self> {
        let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
            .current_dir(&here)
            .output()
            .context("could not start cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Self::parse(&output.stdout)
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let raw: Metadata =
            serde_json::from_slice(json).context("cargo metadata printed something unknown")?;
        let root = raw.workspace_root;
        let relative = |path: &Path| path.strip_prefix(&root).unwrap_or(path).to_path_buf();
        let mut packages: Vec<Package> = raw
            .packages
            .into_iter()
            .map(|p| {
                let mut package = Package {
                    name: p.name,
                    dir: relative(p.manifest_path.parent().unwrap_or(&p.manifest_path)),
                    ..Package::default()
                };
                package.features = p.features.into_keys().filter(|f| f != "default").collect();
                for target in p.targets {
                    package.features.retain(|f| !target.required.contains(f));
                    let file = relative(&target.src_path);
                    match target.kind.first().map(String::as_str) {
                        Some("lib" | "rlib" | "cdylib" | "proc-macro") => package.lib = Some(file),
                        Some("bin") => package.bins.push(file),
                        _ => {}
                    }
                }
                for d in p.dependencies {
                    let to = match (d.path.is_some(), d.kind.as_deref()) {
                        (true, Some("dev")) => &mut package.dev,
                        // A build script's dependency is compiled before the crate: it is an arrow like any other.
                        (true, _) => &mut package.normal,
                        (false, None) => &mut package.external,
                        (false, _) => continue,
                    };
                    to.insert(d.name);
                }
                package
            })
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { root, packages })
    }

    /// Reads and parses a TOML file of the repository.
    pub(crate) fn toml<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T> {
        let text =
            std::fs::read_to_string(self.root.join(path)).with_context(|| format!("cannot read {path}"))?;
        toml::from_str(&text).with_context(|| format!("{path} does not parse"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_becomes_arrows() {
        let json = r#"{"workspace_root": "/r", "packages": [{
            "name": "a", "manifest_path": "/r/crates/a/Cargo.toml",
            "features": {"default": ["cli"], "cli": [], "x": []},
            "targets": [{"kind": ["lib"], "src_path": "/r/crates/a/src/lib.rs"},
                        {"kind": ["bin"], "src_path": "/r/crates/a/src/main.rs", "required-features": ["cli"]},
                        {"kind": ["test"], "src_path": "/r/crates/a/tests/t.rs"}],
            "dependencies": [{"name": "b", "kind": null, "path": "/r/crates/b"},
                             {"name": "c", "kind": "dev", "path": "/r/crates/c"},
                             {"name": "d", "kind": "build", "path": "/r/crates/d"},
                             {"name": "libc", "kind": null, "path": null},
                             {"name": "proptest", "kind": "dev", "path": null}]}]}"#;
        let workspace = Workspace::parse(json.as_bytes()).unwrap();
        let a = &workspace.packages[0];
        assert_eq!(a.dir, Path::new("crates/a"));
        assert_eq!(a.lib.as_deref(), Some(Path::new("crates/a/src/lib.rs")));
        assert!(a.is_library_crate());
        assert_eq!(a.features.iter().collect::<Vec<_>>(), ["x"], "only the program needs cli");
        assert_eq!(a.normal.iter().collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!(a.dev.iter().collect::<Vec<_>>(), ["c"]);
        assert_eq!(a.external.iter().collect::<Vec<_>>(), ["libc"]);
    }
}
