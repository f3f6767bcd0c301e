//! Tables of the manual as input of tbl(1).
//!
//! tbl does not wrap cells by itself. Columns of a table that is too wide for a terminal of 80 columns get a width, and their
//! cells become text blocks, which roff fills to that width.

/// Characters that a table may take: a line of 80 columns without the man page's indentation of 7 and its margin.
const WIDTH_MAX: usize = 70;
/// Characters between two columns, as tbl leaves them.
const GAP: usize = 3;

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

    /// Length of the longest word, below which the cell cannot be wrapped.
    fn word(&self) -> usize {
        self.plain.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0)
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
    /// Adds text to the present cell: `roff` is printed as `plain`.
    pub(super) fn text(&mut self, roff: &str, plain: &str) {
        self.cell.roff.push_str(roff);
        self.cell.plain.push_str(plain);
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
        let widths = fit(&natural, &widest(TableCell::word), WIDTH_MAX.saturating_sub(GAP * (columns - 1)));
        let wrapped: Vec<bool> =
            natural.iter().zip(&widths).map(|(natural, width)| width < natural).collect();
        let formats = |letter: &str| {
            let of = |at: usize| match wrapped[at] {
                true => format!("{letter}w({}n)", widths[at]),
                false => letter.to_owned(),
            };
            (0..columns).map(of).collect::<Vec<_>>().join(" ")
        };
        let mut out = format!(".TS\ntab(\t);\n{}\n{}.\n", formats("lB"), formats("l"));
        for (number, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&wrapped).map(|(cell, &wrapped)| match wrapped {
                // `.ad l`: filling a narrow column to both margins tears holes into it. `.nh`: options are not hyphenated.
                true => format!("T{{\n.ad l\n.nh\n\\&{}\nT}}", cell.roff.trim()),
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
        let expected = ".TS\ntab(\t);\nlB lB\nl l.\n\\&a\t\\&b\n_\n\\&\\fBc\\fR\t\\&\\&.d\n.TE\n";
        assert_eq!(roff, expected);
    }

    #[test]
    fn wide_columns_are_wrapped_to_fit_the_terminal() {
        assert_eq!(fit(&[5, 100, 80], &[5, 9, 9], 60), [5, 28, 27]);
        assert_eq!(fit(&[50, 100], &[50, 40], 60), [50, 40]);
        let roff = super::super::to_roff(&format!("| a | b |\n|---|---|\n| c | {} |\n", "word ".repeat(40)));
        assert!(roff.contains("lB lBw(66n)\nl lw(66n).\n") && roff.contains("\tT{\n"), "{roff}");
    }
}
