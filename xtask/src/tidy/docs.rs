//! Markdown files.

use std::path::Path;

use super::{File, beside};
use crate::ci::TEST_COMMAND;
use crate::findings::Findings;
use crate::source::{code_only, lines_with};

const DECISIONS: &str = "docs/adr/";
const SECTIONS: [&str; 4] = ["## Context", "## Decision", "## Consequences", "## Non-goals"];

/// Links that lead into the repository, to a heading, or to a function.
pub(super) fn links(file: &File, root: &Path, findings: &mut Findings) {
    for (line, target) in targets(&file.text) {
        let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let to = if path.is_empty() { Path::new(&file.path).to_path_buf() } else { beside(&file.path, path) };
        let place = format!("{}:{line}", file.path);
        if !root.join(&to).exists() {
            findings.fail(place, format_args!("the link to {} leads nowhere", to.display()));
        } else if !anchor.is_empty() {
            let text = std::fs::read_to_string(root.join(&to)).unwrap_or_default();
            // A link to a Rust file may name a test or another function in it: docs that name checks stay true.
            let there = if to.extension().is_some_and(|e| e == "rs") {
                !lines_with(&code_only(&text), &format!("fn {anchor}")).is_empty()
            } else {
                anchors(&text).iter().any(|a| a == anchor)
            };
            if !there {
                findings.fail(place, format_args!("{} has no heading or function {anchor}", to.display()));
            }
        }
    }
}

/// Lines outside of code blocks, with their numbers from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    text.lines().enumerate().filter_map(move |(i, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        (!code && !fence).then_some((i + 1, line))
    })
}

fn targets(text: &str) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    for (number, line) in prose(text) {
        for (at, _) in line.match_indices("](") {
            // Inside `code` there are no links.
            if line[..at].matches('`').count() % 2 == 1 {
                continue;
            }
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                targets.push((number, target.to_owned()));
            }
        }
    }
    targets
}

/// The anchors that GitHub gives a page's headings.
fn anchors(text: &str) -> Vec<String> {
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The records of decisions are numbered without a gap, and each has its four sections.
pub(super) fn decisions(files: &[File], findings: &mut Findings) {
    let records = files.iter().filter(|f| f.path.starts_with(DECISIONS) && f.path.ends_with(".md"));
    for (next, file) in (1..).zip(records) {
        let name = &file.path[DECISIONS.len()..];
        match name.split_once('-').map(|(number, _)| number) {
            Some(number) if number == format!("{next:04}") => {}
            _ => findings.fail(&file.path, format_args!("the next record is {next:04}-its-title.md")),
        }
        for section in SECTIONS.iter().filter(|s| !file.text.lines().any(|l| l.trim_end() == **s)) {
            findings.fail(&file.path, format_args!("has no section '{section}'"));
        }
    }
}

/// What the first page tells a newcomer to run is what CI runs.
pub(super) fn readme(files: &[File], findings: &mut Findings) {
    let said = files.iter().find(|f| f.path == "README.md");
    if !said.is_some_and(|f| f.text.lines().any(|l| l.trim_end() == TEST_COMMAND)) {
        findings.fail(
            "README.md",
            format_args!("does not give '{TEST_COMMAND}', which CI runs, on a line of its own"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn links_outside_of_code_are_found() {
        let text =
            "[a](b.md) and [c](d.md#e \"t\")\n```\n[no](f.md)\n```\n[w](https://x.org) `x[0](y)` [h](#g)";
        assert_eq!(targets(text), [(1, "b.md".into()), (1, "d.md#e".into()), (5, "#g".into())]);
    }

    #[test]
    fn links_must_lead_somewhere() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let found = |text| {
            let mut findings = Findings::default();
            links(&file("x.md", text), root, &mut findings);
            findings.failures().to_vec()
        };
        assert_eq!(found("[a](src/main.rs)"), [""; 0]);
        assert_eq!(found("[a](src/tidy/docs.rs#links_must_lead_somewhere)"), [""; 0]);
        assert_eq!(found("[a](src/main.rs#gone)"), ["x.md:1: src/main.rs has no heading or function gone"]);
        assert_eq!(found("\n[a](src/gone.rs)"), ["x.md:2: the link to src/gone.rs leads nowhere"]);
    }

    #[test]
    fn headings_have_githubs_anchors() {
        assert_eq!(anchors("# The `way` of data: 1\n```\n# no\n```\n## B"), ["the-way-of-data-1", "b"]);
    }

    #[test]
    fn decisions_are_numbered_without_a_gap() {
        let whole = SECTIONS.join("\n");
        let found = |files: &[File]| {
            let mut findings = Findings::default();
            decisions(files, &mut findings);
            findings.failures().to_vec()
        };
        assert_eq!(found(&[file("docs/adr/0001-a.md", &whole), file("docs/adr/0002-b.md", &whole)]), [""; 0]);
        let failures = found(&[file("docs/adr/0001-a.md", &whole), file("docs/adr/0003-b.md", &whole)]);
        assert_eq!(failures, ["docs/adr/0003-b.md: the next record is 0002-its-title.md"]);
        assert_eq!(found(&[file("docs/adr/0001-a.md", "## Context\n")]).len(), 3);
    }

    #[test]
    fn the_first_page_gives_the_test_command() {
        let found = |text: &str| {
            let mut findings = Findings::default();
            readme(&[file("README.md", text)], &mut findings);
            findings.failures().len()
        };
        assert_eq!(found(&format!("```sh\n{TEST_COMMAND}\n```")), 0);
        assert_eq!(found("```sh\ncargo test\n```"), 1);
    }
}
