//! The manual: pages written in Markdown that the program carries, and their form as man pages.
//!
//! The sources are `rcx-imagefs-NAME.SECTION.md` beside this file. The first line is the head line
//! `# rcx-imagefs-NAME(SECTION): summary`; the rest is plain CommonMark with tables. The pages of the commands themselves are
//! generated from their help texts (see `cli`).

mod roff;
mod table;

pub use roff::{man_page_head, to_roff};

/// A page of the manual.
#[derive(Debug, Clone, Copy)]
pub struct ManualPage {
    /// The name without `rcx-imagefs-`.
    pub name: &'static str,
    /// The section of man pages: 5 file formats, 7 overviews, 8 administration.
    pub section: u8,
    /// The source.
    pub markdown: &'static str,
}

macro_rules! pages {
    ($($name:literal $section:literal,)+) => {
        &[$(ManualPage {
            name: $name,
            section: $section,
            markdown: include_str!(concat!("rcx-imagefs-", $name, ".", $section, ".md")),
        },)+]
    };
}

impl ManualPage {
    /// All pages, in reading order.
    pub const ALL: &'static [Self] = pages! {
        "images" 7,
        "run" 7,
        "isolate" 8,
        "config" 5,
        "registries" 7,
        "environments" 7,
        "operations" 7,
        "store" 7,
        "errors" 7,
        "changes" 7,
    };

    /// Finds a page by `NAME`, `rcx-imagefs-NAME` or `rcx-imagefs-NAME(SECTION)`.
    #[must_use]
    pub fn find(text: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|page| {
            let title = page.title();
            let title_without_section = title.split('(').next();
            text == page.name || text == title || Some(text) == title_without_section
        })
    }

    /// `rcx-imagefs-NAME(SECTION)`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("rcx-imagefs-{}({})", self.name, self.section)
    }

    /// The name of the man page's file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("rcx-imagefs-{}.{}", self.name, self.section)
    }

    /// What the page is about, from its head line.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        let head = self.markdown.lines().next().unwrap_or_default();
        head.split_once(": ").map_or(head, |(_, summary)| summary)
    }

    /// Converts the page to a man page.
    #[must_use]
    pub fn to_man_page(&self) -> String {
        let (_, body) = self.markdown.split_once('\n').unwrap_or_default();
        let name = format!("rcx-imagefs-{}", self.name);
        format!(
            "{}.SH NAME\n{} \\- {}\n{}",
            man_page_head(&name, self.section),
            roff::escape(&name),
            roff::escape(self.summary()),
            to_roff(body),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_starts_with_its_head_line() {
        for page in ManualPage::ALL {
            let head = format!("# {}: {}", page.title(), page.summary());
            assert_eq!(page.markdown.lines().next(), Some(head.as_str()));
            assert!(!page.summary().is_empty() && !page.summary().ends_with('.'), "{head}");
        }
    }

    #[test]
    fn pages_are_found_by_name_and_by_title() {
        for text in ["config", "rcx-imagefs-config", "rcx-imagefs-config(5)"] {
            assert_eq!(ManualPage::find(text).map(|page| page.name), Some("config"), "{text}");
        }
        for text in ["", "conf", "config(5)", "rcx-imagefs-config(7)", "rcx-imagefs"] {
            assert!(ManualPage::find(text).is_none(), "{text}");
        }
    }

    #[test]
    fn man_page_has_a_title_and_a_name_section() {
        let page = ManualPage::find("config").unwrap().to_man_page();
        assert!(page.starts_with("'\\\" t\n.TH RCX\\-IMAGEFS\\-CONFIG 5 "), "{page}");
        assert!(page.contains("\n.SH NAME\nrcx\\-imagefs\\-config \\- "), "{page}");
    }
}
