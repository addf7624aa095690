//! Rust files.

use std::path::Path;

use super::{File, beside};
use crate::findings::Findings;
use crate::source::{code_only, lines_with, without_tests};
use crate::workspace::Package;

/// Crates that may have `unsafe` code.
const UNSAFE: [&str; 4] = ["kvstrata-mem", "kvstrata-io", "kvstrata-cuda", "kvstrata-l2-gds"];
/// Where the environment may be read.
const ENVIRONMENT: [&str; 3] = ["crates/config/", "crates/kvstrata/", "xtask/"];
/// Where a clock may be read; everything else gets one passed in.
const CLOCKS: [&str; 4] = ["crates/core/src/time.rs", "crates/l2/src/timer.rs", "crates/kvstrata/", "xtask/"];
const LINES_WARN: usize = 600;
const LINES_FAIL: usize = 1000;

/// One file.
pub(super) fn check(file: &File, findings: &mut Findings) {
    let path = &file.path;
    let lines = file.text.lines().count();
    if lines > LINES_FAIL {
        findings.fail(path, format_args!("{lines} lines. Past {LINES_FAIL} it is two files"));
    } else if lines > LINES_WARN {
        findings.warn(path, format_args!("{lines} lines. Past {LINES_WARN} look for the seam"));
    }
    let code = code_only(&file.text);
    let mut ban = |code: &str, words: &[&str], why: &str| {
        for word in words {
            for line in lines_with(code, word) {
                findings.fail(format_args!("{path}:{line}"), format_args!("{word} {why}"));
            }
        }
    };
    ban(&code, &["#[allow", "#![allow"], "hides more than it says. Use #[expect(.., reason = \"..\")]");
    ban(&code, &["todo!", "unimplemented!", "dbg!"], "does not belong in a commit. Finish it or take it out");
    if is_test(path) {
        return;
    }
    let code = without_tests(&code);
    if !starts_with_any(path, &ENVIRONMENT) {
        let words = ["env::var", "env::var_os", "env::vars", "env::vars_os"];
        ban(&code, &words, "reads the environment. Only config does; make it a setting");
    }
    if !starts_with_any(path, &CLOCKS) {
        ban(
            &code,
            &["Instant::now", "SystemTime::now"],
            "reads a clock. Have a kvstrata_core::Clock passed in",
        );
    }
}

fn starts_with_any(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// Tests, benches and examples, and modules that are compiled for tests only.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "benches" | "examples" | "tests.rs"))
}

/// What holds for a package as a whole.
pub(super) fn check_package(package: &Package, files: &[File], root: &Path, findings: &mut Findings) {
    let text = |path: &Path| files.iter().find(|f| Path::new(&f.path) == path).map(|f| f.text.as_str());
    let name = &package.name;
    if !UNSAFE.contains(&name.as_str()) && !name.ends_with("-sys") {
        for path in package.lib.iter().chain(&package.bins) {
            if !text(path).is_some_and(|t| code_only(t).contains("#![forbid(unsafe_code)]")) {
                findings.fail(
                    path.display(),
                    format_args!(
                        "{name} is not among the crates with unsafe code. Add #![forbid(unsafe_code)]"
                    ),
                );
            }
        }
    }
    if package.dir.starts_with("crates")
        && let Some(lib) = &package.lib
        && let Err(what) = doc_page(&lib.to_string_lossy(), text(lib).unwrap_or_default(), root)
    {
        findings.fail(lib.display(), what);
    }
    if package.is_library_crate() && package.bins.is_empty() && package.external.contains("anyhow") {
        findings.fail(
            package.dir.join("Cargo.toml").display(),
            "a library's errors are kvstrata_core::Error; anyhow is for programs",
        );
    }
    unused(package, files, findings);
}

/// An arrow that no code uses is one too many.
fn unused(package: &Package, files: &[File], findings: &mut Findings) {
    let sources: Vec<String> = files
        .iter()
        .filter(|f| f.path.ends_with(".rs") && Path::new(&f.path).starts_with(package.dir.join("src")))
        .map(|f| code_only(&f.text))
        .collect();
    // A few name their library without the hyphen: md-5 is md5.
    let used = |name: &str| {
        ["_", ""]
            .iter()
            .any(|hyphen| sources.iter().any(|code| !lines_with(code, &name.replace('-', hyphen)).is_empty()))
    };
    let idle: Vec<&str> = (package.normal.iter().chain(&package.external))
        .filter(|name| !used(name))
        .map(String::as_str)
        .collect();
    if !idle.is_empty() {
        findings.fail(
            package.dir.join("Cargo.toml").display(),
            format_args!(
                "nothing in src uses {}. Remove it, or move it to [dev-dependencies]",
                idle.join(", ")
            ),
        );
    }
}

/// A library opens with a page that says what it is for and shows it in an example that is compiled.
fn doc_page(path: &str, source: &str, root: &Path) -> Result<(), String> {
    let mut page = String::new();
    for line in source.lines() {
        if let Some(doc) = line.strip_prefix("//!") {
            page.push_str(doc.strip_prefix(' ').unwrap_or(doc));
            page.push('\n');
        } else if let Some(file) =
            line.strip_prefix("#![doc = include_str!(\"").and_then(|l| l.split('"').next())
        {
            let file = beside(path, file);
            page +=
                &std::fs::read_to_string(root.join(&file)).map_err(|e| format!("{}: {e}", file.display()))?;
        } else if !line.trim().is_empty() {
            break;
        }
    }
    if page.trim().is_empty() {
        return Err(
            "has no doc page. Open it with what the crate is for, an example, and what it does not do".into(),
        );
    }
    let mut open = false;
    for line in page.lines() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        if !open && matches!(info.trim(), "" | "rust" | "no_run" | "should_panic") {
            return Ok(());
        }
        open = !open;
    }
    Err("its doc page has no example that is compiled. Add a ``` block that uses the crate".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Findings {
        let mut findings = Findings::default();
        check(&File { path: path.into(), text: text.into() }, &mut findings);
        findings
    }

    #[test]
    fn words_are_banned_where_they_do_not_belong() {
        let clock = "fn f() { let t = std::time::Instant::now(); std::env::var(\"X\"); }\n#[allow(dead_code)]\nfn g() { todo!() }";
        let failures = found("crates/io/src/pool.rs", clock);
        assert_eq!(failures.failures().len(), 4, "{failures:?}");
        assert_eq!(found("crates/io/tests/pool.rs", clock).failures().len(), 2, "a test may read both");
        assert_eq!(found("crates/core/src/time.rs", clock).failures().len(), 3, "the clock's own place");
        assert_eq!(
            found("crates/kvstrata/src/main.rs", clock).failures().len(),
            2,
            "a program may read both"
        );
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}\n}}", clock.lines().next().unwrap());
        assert_eq!(found("crates/io/src/pool.rs", &tests).failures().len(), 0);
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(found("a.rs", &"\n".repeat(600)).warnings().len(), 0);
        assert_eq!(found("a.rs", &"\n".repeat(601)).warnings().len(), 1);
        assert_eq!(found("a.rs", &"\n".repeat(1001)).failures().len(), 1);
    }

    #[test]
    fn a_doc_page_has_an_example_that_is_compiled() {
        let page = |text| doc_page("crates/a/src/lib.rs", text, Path::new("/nowhere"));
        assert_eq!(page("//! For this.\n//!\n//! ```\n//! a();\n//! ```\n#![forbid(unsafe_code)]"), Ok(()));
        assert!(page("#![forbid(unsafe_code)]\n").unwrap_err().contains("no doc page"));
        assert!(page("//! For this.\nfn f() {}\n//! ```\n").unwrap_err().contains("no example"));
        assert!(page("//! ```text\n//! a();\n//! ```\n").unwrap_err().contains("no example"), "not compiled");
        assert!(
            page("//! ```ignore\n//! a();\n//! ```\n").unwrap_err().contains("no example"),
            "not compiled"
        );
    }

    #[test]
    fn packages_keep_the_rules_of_the_house() {
        let package = Package {
            name: "kvstrata-a".into(),
            dir: "crates/a".into(),
            lib: Some("crates/a/src/lib.rs".into()),
            normal: ["kvstrata-core".to_owned()].into(),
            external: ["anyhow".to_owned()].into(),
            ..Package::default()
        };
        let lib = |text: &str| File { path: "crates/a/src/lib.rs".into(), text: text.into() };
        let found = |text| {
            let mut findings = Findings::default();
            check_package(&package, &[lib(text)], Path::new("/nowhere"), &mut findings);
            findings.failures().join("\n")
        };
        let failures = found("//! A.\n//! ```\n//! ```\n// #![forbid(unsafe_code)] kvstrata_core");
        for expected in ["forbid", "nothing in src uses kvstrata-core, anyhow.", "is for programs"] {
            assert!(failures.contains(expected), "no '{expected}' in {failures}");
        }
        let failures = found(
            "//! A.\n//! ```\n//! ```\n#![forbid(unsafe_code)]\nuse kvstrata_core as _; use anyhow as _;",
        );
        assert_eq!(failures.lines().count(), 1, "{failures}");
    }
}
