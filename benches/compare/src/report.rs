//! Tables for people.

/// Prints rows of cells under headings, the first column to the left and the others to the right.
pub(crate) fn print_table(headings: &[&str], rows: &[Vec<String>]) {
    let all =
        || std::iter::once(headings.iter().map(ToString::to_string).collect()).chain(rows.iter().cloned());
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    for row in all() {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &if at == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") };
        }
        println!("{}", line.trim_end());
    }
}
