//! Converts tables to input of tbl(1).
//!
//! tbl does not wrap cells by itself. Columns of a table that is too wide for a terminal of 80 columns get a width, and their
//! cells become text blocks, which roff fills to that width.

use super::roff::escape;

/// Characters that a table may take: a line of 80 columns without the man page's indentation of 7 and its margin.
const WIDTH_MAX: usize = 70;
/// Characters between two columns, as tbl leaves them.
const GAP: usize = 3;
/// Words longer than this may be broken after `_` and `/`.
const WORD_MAX: usize = 20;

/// One cell.
#[derive(Debug, Default)]
struct TableCell {
    /// As roff.
    roff: String,
    /// As printed.
    plain: String,
}

impl TableCell {
    fn width(&self) -> usize {
        self.plain.chars().count()
    }

    /// Length of the longest part that cannot be broken: the least width of a column.
    fn least_width(&self) -> usize {
        let parts = self.plain.split_whitespace().flat_map(parts);
        parts.map(|part| part.chars().count()).max().unwrap_or(0)
    }
}

/// The parts of a word between which a line may be broken.
fn parts(word: &str) -> Vec<&str> {
    match word.chars().count() > WORD_MAX {
        true => word.split_inclusive(['_', '/']).collect(),
        false => vec![word],
    }
}

/// Collects the cells of a table; the first row is the head.
#[derive(Debug, Default)]
pub(super) struct TableBuilder {
    rows: Vec<Vec<TableCell>>,
    row: Vec<TableCell>,
    cell: TableCell,
}

impl TableBuilder {
    /// Adds text to the present cell.
    pub(super) fn text(&mut self, text: &str) {
        for word in text.split_inclusive(' ') {
            // `\:` is a place where a line may be broken, without a hyphen.
            let parts: Vec<String> = parts(word).into_iter().map(escape).collect();
            self.cell.roff.push_str(&parts.join("\\:"));
        }
        self.cell.plain.push_str(text);
    }

    /// Changes the font, by an escape sequence of roff.
    pub(super) fn font(&mut self, sequence: &str) {
        self.cell.roff.push_str(sequence);
    }

    pub(super) fn end_cell(&mut self) {
        self.row.push(std::mem::take(&mut self.cell));
    }

    pub(super) fn end_row(&mut self) {
        self.rows.push(std::mem::take(&mut self.row));
    }

    /// The table as tbl reads it.
    pub(super) fn to_tbl(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        if columns == 0 {
            return String::new();
        }
        let widest = |measure: fn(&TableCell) -> usize| -> Vec<usize> {
            let column = |at: usize| {
                self.rows.iter().filter_map(|row| row.get(at)).map(measure).max().unwrap_or(0).max(1)
            };
            (0..columns).map(column).collect()
        };
        let natural = widest(TableCell::width);
        let widths =
            fit(&natural, &widest(TableCell::least_width), WIDTH_MAX.saturating_sub(GAP * (columns - 1)));
        let wrapped: Vec<bool> =
            natural.iter().zip(&widths).map(|(natural, width)| width < natural).collect();
        let formats = |letter: &str| {
            let of = |at: usize| match wrapped[at] {
                true => format!("{letter}w({}n)", widths[at]),
                false => letter.to_owned(),
            };
            (0..columns).map(of).collect::<Vec<_>>().join(" ")
        };
        let mut out = format!(".TS\nnokeep tab(\t);\n{}\n{}.\n", formats("lB"), formats("l"));
        for (number, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&wrapped).map(|(cell, &wrapped)| match wrapped {
                true => format!("T{{\n.nh\n\\&{}\nT}}", cell.roff.trim()),
                false => format!("\\&{}", cell.roff.trim()),
            });
            out.push_str(&cells.collect::<Vec<_>>().join("\t"));
            out.push('\n');
            if number == 0 {
                out.push_str("_\n");
            }
        }
        out.push_str(".TE\n");
        out
    }
}

/// Reduces the widths of columns, the widest first, until they fit into `total`, but none below its longest word.
fn fit(natural: &[usize], least: &[usize], total: usize) -> Vec<usize> {
    let mut widths = natural.to_vec();
    while widths.iter().sum::<usize>() > total {
        let reducible = (0..widths.len()).filter(|&at| widths[at] > least[at]);
        match reducible.max_by_key(|&at| widths[at]) {
            Some(widest) => widths[widest] -= 1,
            None => break,
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_table_has_no_text_blocks() {
        let roff = super::super::to_roff("| a | b |\n|---|---|\n| `c` | .d |\n");
        let expected = ".TS\nnokeep tab(\t);\nlB lB\nl l.\n\\&a\t\\&b\n_\n\\&\\fBc\\fR\t\\&\\&.d\n.TE\n";
        assert_eq!(roff, expected);
    }

    #[test]
    fn wide_columns_are_wrapped_to_fit_the_terminal() {
        assert_eq!(fit(&[5, 100, 80], &[5, 9, 9], 60), [5, 28, 27]);
        assert_eq!(fit(&[50, 100], &[50, 40], 60), [50, 40]);
        let roff = super::super::to_roff(&format!("| a | b |\n|---|---|\n| c | {} |\n", "word ".repeat(40)));
        assert!(roff.contains("lB lBw(66n)\nl lw(66n).\n") && roff.contains("\tT{\n"), "{roff}");
        let name = ["long", "test", "name"].join("_").repeat(3);
        let roff = super::super::to_roff(&format!("| a |\n|---|\n| {name} |\n"));
        assert!(roff.contains("long_\\:test_\\:name"), "{roff}");
    }
}
