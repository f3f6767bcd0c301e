//! Converts Markdown to roff with the man macros (groff_man(7)), and tables to tbl(1).
//!
//! Headings of the second level become sections, those of the third level subsections. Text in backquotes is bold, as
//! usual in man pages. Raw HTML is kept as text, so that `<NAME>` in a paragraph is not lost.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::table::TableBuilder;

/// Returns the lines that every man page starts with: title, and left-aligned text without hyphenation, so that options and
/// paths are neither torn apart nor hyphenated.
#[must_use]
pub fn man_page_head(name: &str, section: u8) -> String {
    let title = escape(&name.to_uppercase());
    let version = env!("CARGO_PKG_VERSION");
    // The first line asks man for tbl.
    format!(
        "'\\\" t\n.TH {title} {section} \"\" \"rcx\\-imagefs {version}\" \"rcx\\-imagefs manual\"\n.nr HY 0\n.nh\n.ad l\n"
    )
}

/// Converts the body of a page: sections, paragraphs, lists, tables and code.
#[must_use]
pub fn to_roff(markdown: &str) -> String {
    let events: Vec<Event<'_>> = Parser::new_ext(markdown, Options::ENABLE_TABLES).collect();
    let mut writer = RoffWriter::default();
    for (at, event) in events.iter().enumerate() {
        writer.event(event, events.get(at + 1));
    }
    writer.end_line();
    writer.out
}

/// Escapes text so that roff prints it as it is, wherever it stands in a line.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    push_escaped(&mut out, text);
    out
}

fn push_escaped(out: &mut String, text: &str) {
    for character in text.chars() {
        // A control character of roff at the start of a line would make it a request.
        if matches!(character, '.' | '\'') && (out.is_empty() || out.ends_with('\n')) {
            out.push_str("\\&");
        }
        match character {
            '\\' => out.push_str("\\(rs"),
            '-' => out.push_str("\\-"),
            '"' => out.push_str("\\(dq"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            '\t' => out.push_str("    "),
            character if character.is_ascii() => out.push(character),
            character => out.push_str(&format!("\\[u{:04X}]", u32::from(character))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Font {
    Roman,
    Bold,
    Italic,
}

impl Font {
    fn escape(self) -> &'static str {
        match self {
            Self::Roman => "\\fR",
            Self::Bold => "\\fB",
            Self::Italic => "\\fI",
        }
    }
}

/// An open list.
#[derive(Debug)]
struct OpenList {
    /// The number of the next item; `None` for bullets.
    next_number: Option<u64>,
    /// Items that were started.
    items: usize,
    /// Whether the present item has a block already, so that the next one needs an indented paragraph of its own.
    has_block: bool,
}

impl OpenList {
    /// Width of the tags, in characters.
    fn indent(&self) -> usize {
        if self.next_number.is_some() { 4 } else { 2 }
    }
}

/// Writes roff, one event of the Markdown parser after another.
#[derive(Debug, Default)]
struct RoffWriter {
    out: String,
    fonts: Vec<Font>,
    lists: Vec<OpenList>,
    table: Option<TableBuilder>,
    /// Inside a heading, whose macro chooses the font.
    in_heading: bool,
    /// Inside a heading of the second level, which is printed in capitals.
    in_section_heading: bool,
    in_code_block: bool,
    /// Target of the link that is open, and the length of the output at its start.
    link: Option<(String, usize)>,
}

impl RoffWriter {
    fn event(&mut self, event: &Event<'_>, next: Option<&Event<'_>>) {
        match event {
            Event::Start(tag) => self.start(tag, next),
            Event::End(tag) => self.end(*tag),
            Event::Text(text) | Event::InlineHtml(text) => self.text(text),
            Event::Code(text) => {
                self.push_font(Font::Bold);
                self.text(text);
                self.pop_font();
            }
            Event::SoftBreak => self.text(if self.in_heading || self.table.is_some() { " " } else { "\n" }),
            Event::HardBreak => self.control("br"),
            Event::Rule
            | Event::Html(_)
            | Event::InlineMath(_)
            | Event::DisplayMath(_)
            | Event::FootnoteReference(_)
            | Event::TaskListMarker(_) => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>, next: Option<&Event<'_>>) {
        match tag {
            Tag::Paragraph => self.paragraph(),
            Tag::Heading { level, .. } => {
                self.in_heading = true;
                self.in_section_heading = *level <= HeadingLevel::H2;
                self.end_line();
                self.out.push_str(if self.in_section_heading { ".SH " } else { ".SS " });
            }
            Tag::BlockQuote(_) => self.control("RS 4"),
            Tag::CodeBlock(_) => {
                self.open_block();
                self.control("PP");
                self.control("RS 4");
                self.control("EX");
                self.in_code_block = true;
            }
            Tag::List(first) => {
                self.open_block();
                self.lists.push(OpenList { next_number: *first, items: 0, has_block: false });
            }
            Tag::Item => self.item(!matches!(next, Some(Event::Start(Tag::Paragraph)))),
            Tag::Emphasis => self.push_font(Font::Italic),
            Tag::Strong => self.push_font(Font::Bold),
            Tag::Link { dest_url, .. } => self.link = Some((dest_url.to_string(), self.out.len())),
            Tag::Table(_) => {
                self.open_block();
                self.table = Some(TableBuilder::default());
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => self.end_line(),
            TagEnd::Heading(_) => {
                (self.in_heading, self.in_section_heading) = (false, false);
                self.end_line();
            }
            TagEnd::BlockQuote(_) => self.control("RE"),
            TagEnd::CodeBlock => {
                self.in_code_block = false;
                self.control("EE");
                self.control("RE");
                self.close_block();
            }
            TagEnd::List(_) => {
                self.lists.pop();
                self.end_line();
                self.close_block();
            }
            TagEnd::Item => self.end_line(),
            TagEnd::Emphasis | TagEnd::Strong => self.pop_font(),
            TagEnd::Link => self.end_link(),
            TagEnd::TableCell => {
                if let Some(table) = &mut self.table {
                    table.end_cell();
                }
            }
            TagEnd::TableHead | TagEnd::TableRow => {
                if let Some(table) = &mut self.table {
                    table.end_row();
                }
            }
            TagEnd::Table => {
                if let Some(table) = self.table.take() {
                    self.end_line();
                    self.out.push_str(&table.to_tbl());
                }
                self.close_block();
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        let capitals = self.in_section_heading && self.fonts.is_empty();
        let text = if capitals { text.to_uppercase() } else { text.to_owned() };
        match &mut self.table {
            Some(table) => table.text(&text),
            None => push_escaped(&mut self.out, &text),
        }
    }

    /// Starts a paragraph; in a list item, the first one belongs to the item's tag.
    fn paragraph(&mut self) {
        let request = match self.lists.last_mut() {
            None => "PP".to_owned(),
            Some(list) if list.has_block => format!("IP \"\" {}", list.indent()),
            Some(list) => {
                list.has_block = true;
                return;
            }
        };
        self.control(&request);
    }

    fn item(&mut self, tight: bool) {
        let Some(list) = self.lists.last_mut() else { return };
        let tag = match &mut list.next_number {
            None => "\\(bu".to_owned(),
            Some(number) => {
                *number += 1;
                format!("{}.", *number - 1)
            }
        };
        list.items += 1;
        list.has_block = tight;
        let (indent, close_up) = (list.indent(), tight && list.items > 1);
        // No empty line between short items.
        if close_up {
            self.control("PD 0");
        }
        self.control(&format!("IP {tag} {indent}"));
        if close_up {
            self.control("PD");
        }
    }

    /// Starts a code block, list or table; inside a list item it is indented as the item's text.
    fn open_block(&mut self) {
        self.end_line();
        if let Some(list) = self.lists.last_mut() {
            list.has_block = true;
            let request = format!("RS {}", list.indent());
            self.control(&request);
        }
    }

    fn close_block(&mut self) {
        if !self.lists.is_empty() {
            self.control("RE");
        }
    }

    /// Adds the address of a link to another host, unless it is the link's text.
    fn end_link(&mut self) {
        let Some((address, start)) = self.link.take() else { return };
        if !address.starts_with("http") || self.table.is_some() {
            return;
        }
        let shown = &self.out[start.min(self.out.len())..];
        if !shown.contains(escape(&address).as_str()) {
            self.text(&format!(" ({address})"));
        }
    }

    fn push_font(&mut self, font: Font) {
        self.fonts.push(font);
        self.set_font();
    }

    fn pop_font(&mut self) {
        self.fonts.pop();
        self.set_font();
    }

    fn set_font(&mut self) {
        if self.in_heading || self.in_code_block {
            return;
        }
        let escape = self.fonts.last().copied().unwrap_or(Font::Roman).escape();
        match &mut self.table {
            Some(table) => table.font(escape),
            None => self.out.push_str(escape),
        }
    }

    /// Writes a request on a line of its own.
    fn control(&mut self, request: &str) {
        self.end_line();
        self.out.push('.');
        self.out.push_str(request);
        self.out.push('\n');
    }

    fn end_line(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_man_macros() {
        let cases = [
            ("## The `[mount]` table", ".SH THE [mount] TABLE\n"),
            ("### Sub-section", ".SS Sub\\-section\n"),
            ("one\ntwo `--x` **b** *i*", ".PP\none\ntwo \\fB\\-\\-x\\fR \\fBb\\fR \\fIi\\fR\n"),
            (
                ".dot\n'quote \\ \"x\" ^ ~ `",
                ".PP\n\\&.dot\n\\&\\(aqquote \\(rs \\(dqx\\(dq \\(ha \\(ti \\(ga\n",
            ),
            ("caf\u{e9} \u{2026}", ".PP\ncaf\\[u00E9] \\[u2026]\n"),
            ("- a\n- b", ".IP \\(bu 2\na\n.PD 0\n.IP \\(bu 2\n.PD\nb\n"),
            ("- a\n\n- b\n\n  c", ".IP \\(bu 2\na\n.IP \\(bu 2\nb\n.IP \"\" 2\nc\n"),
            ("7. a\n   - b", ".IP 7. 4\na\n.RS 4\n.IP \\(bu 2\nb\n.RE\n"),
            ("```console\n$ a -b\n\n.x\n```", ".PP\n.RS 4\n.EX\n$ a \\-b\n\n\\&.x\n.EE\n.RE\n"),
            ("[a](b.md) [c](https://d) <https://e>", ".PP\na c (https://d) https://e\n"),
            ("a <NAME> b", ".PP\na <NAME> b\n"),
            ("a  \nb", ".PP\na\n.br\nb\n"),
        ];
        for (markdown, expected) in cases {
            assert_eq!(to_roff(markdown), expected, "{markdown}");
        }
    }
}
