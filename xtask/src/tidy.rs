//! What a compiler does not check.

mod docs;
mod rust;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::findings::Findings;
use crate::workspace::Workspace;

/// A text file of the repository.
#[derive(Debug)]
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// The check.
pub(crate) fn run(workspace: &Workspace, findings: &mut Findings) -> Result<()> {
    let files = files(&workspace.root)?;
    let mut sources = 0;
    for file in &files {
        machine_paths(file, findings);
        if file.path.ends_with(".rs") {
            sources += 1;
            rust::check(file, findings);
        } else if file.path.ends_with(".md") {
            docs::links(file, &workspace.root, findings);
        }
    }
    for package in &workspace.packages {
        rust::check_package(package, &files, &workspace.root, findings);
    }
    docs::decisions(&files, findings);
    docs::readme(&files, findings);
    findings.note(format_args!("{} files, {sources} of them Rust", files.len()));
    Ok(())
}

/// Every text file under `root`, in order of path, build folders and version control left out.
fn files(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            // A folder in a clone, a file in a worktree.
            if entry.file_name() == ".git" {
                continue;
            }
            if kind.is_dir() {
                // Cargo marks its build folders with a cache tag.
                if !path.join("CACHEDIR.TAG").exists() {
                    folders.push(path);
                }
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(fs::read(&path)?)
            {
                let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Absolute paths of the machine that somebody works on mean nothing to anybody else.
fn machine_paths(file: &File, findings: &mut Findings) {
    // Put together here, so that this file does not find itself.
    let folders = ["work", "root", "home", "Users"].map(|f| format!("/{f}/"));
    for (i, line) in file.text.lines().enumerate() {
        for folder in &folders {
            let absolute = line.match_indices(folder.as_str()).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "._-~}>*/".contains(c))
            });
            if absolute {
                findings.fail(
                    format_args!("{}:{}", file.path, i + 1),
                    format_args!(
                        "names a path of one machine ({folder}). Make it relative to the repository"
                    ),
                );
            }
        }
    }
}

/// `relative`, seen from the folder of `file`, as a path from the root.
fn beside(file: &str, relative: &str) -> PathBuf {
    let mut path = Path::new(file).parent().unwrap_or(Path::new("")).to_path_buf();
    for part in Path::new(relative).components() {
        match part {
            std::path::Component::ParentDir if path.pop() => {}
            std::path::Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_one_machine_are_found_and_others_are_not() {
        let bad = format!("see /{}/main and\nhttps://x.org/{}/y and crates/{}/x", "work", "work", "home");
        let mut findings = Findings::default();
        machine_paths(&File { path: "a.md".into(), text: bad }, &mut findings);
        assert_eq!(findings.failures().len(), 1, "{findings:?}");
        assert!(findings.failures()[0].starts_with("a.md:1"), "{findings:?}");
    }

    #[test]
    fn relative_paths_are_resolved() {
        assert_eq!(beside("crates/a/src/lib.rs", "../../../README.md"), Path::new("README.md"));
        assert_eq!(beside("README.md", "./docs/x.md"), Path::new("docs/x.md"));
        assert_eq!(beside("README.md", "../x"), Path::new("../x"), "outside of the repository");
    }
}
