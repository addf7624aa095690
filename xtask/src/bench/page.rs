//! Tables as Markdown, in a file of their own and in the page.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Figures, chart};

/// The tables that a program wrote, one JSON object a line.
pub(super) fn read(file: &Path) -> Result<Vec<Figures>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("read {}", file.display())))
        .collect()
}

/// Writes tables and drawings to `out`, and into the page of the workspace at `root`, if there is one.
pub(super) fn put(tables: &[Figures], out: &Path, root: Option<&Path>) -> Result<()> {
    let mut page = root.map(|root| fs::read_to_string(root.join("docs/performance.md"))).transpose()?;
    for table in tables {
        let text = markdown(table);
        println!("\n{}\n\n{text}", table.name);
        fs::write(out.join(format!("{}.md", table.name)), &text)?;
        if let Some(page) = &mut page {
            match replaced(page, &table.name, &text) {
                Some(new) => *page = new,
                None => println!("docs/performance.md has no place for the table {}", table.name),
            }
        }
        if !table.charts.is_empty() {
            let name = format!("perf-{}.svg", table.name);
            let drawing = chart::svg(&table.charts);
            fs::write(out.join(&name), &drawing)?;
            if let Some(root) = root {
                fs::create_dir_all(root.join("docs/img"))?;
                fs::write(root.join("docs/img").join(&name), &drawing)?;
            }
        }
    }
    if let (Some(root), Some(page)) = (root, page) {
        fs::write(root.join("docs/performance.md"), page)?;
    }
    println!("tables and drawings: {}", out.display());
    Ok(())
}

fn markdown(table: &Figures) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|---|{}\n", "---:|".repeat(table.headings.len().saturating_sub(1)));
    let rows: String = table.rows.iter().map(|row| line(row)).collect();
    line(&table.headings) + &rule + &rows
}

/// The page with this text between the marks of the table; `None` if it has no such marks.
fn replaced(page: &str, name: &str, text: &str) -> Option<String> {
    let begin = format!("<!-- figures: {name} -->\n");
    let from = page.find(&begin)? + begin.len();
    let to = from + page[from..].find("<!-- end -->")?;
    Some(format!("{}\n{text}\n{}", &page[..from], &page[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_goes_where_the_page_has_its_marks() {
        let table = r#"{"name":"t","headings":["a","b"],"rows":[["x","1"],["y","2"]],"charts":[]}"#;
        let table: Figures = serde_json::from_str(table).unwrap();
        let text = markdown(&table);
        assert_eq!(text, "| a | b |\n|---|---:|\n| x | 1 |\n| y | 2 |\n");
        let page = "before\n<!-- figures: t -->\nold\n<!-- end -->\nafter\n";
        let new = replaced(page, "t", &text).unwrap();
        assert_eq!(new, format!("before\n<!-- figures: t -->\n\n{text}\n<!-- end -->\nafter\n"));
        assert_eq!(replaced(&new, "t", &text), Some(new.clone()), "twice is as once");
        assert_eq!(replaced(page, "other", &text), None);
    }
}
