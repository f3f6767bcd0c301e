//! The options of all versions of isolate.

use std::ffi::OsString;

use super::IsolateVersion;

/// An option of any version of isolate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named as on the command line and described in isolate(1)")]
pub enum IsolateOption {
    AsGid,
    AsUid,
    BoxId,
    Cg,
    CgMem,
    CgTiming,
    Chdir,
    CheckConfig,
    Cleanup,
    Core,
    Dir,
    Env,
    ExtraTime,
    Fsize,
    FullEnv,
    InheritFds,
    Init,
    Mem,
    Meta,
    NoCgTiming,
    NoDefaultDirs,
    OpenFiles,
    PrintCgRoot,
    Processes,
    Quota,
    Run,
    ShareNet,
    Silent,
    SpecialFiles,
    Stack,
    Stderr,
    StderrToStdout,
    Stdin,
    Stdout,
    Syscalls,
    Time,
    TtyHack,
    Verbose,
    Version,
    Wait,
    WallTime,
}

/// The action of an isolate call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsolateMode {
    /// `--init`
    Init,
    /// `--run`
    Run,
    /// `--cleanup`
    Cleanup,
    /// `--version`
    Version,
    /// `--print-cg-root`
    PrintCgRoot,
    /// `--check-config`
    CheckConfig,
}

/// Whether an option takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionValue {
    Never,
    /// The value is in the same argument or in the next argument.
    Required,
    /// The value, if any, is in the same argument.
    Optional,
}

/// A row of isolate's option table. Versions from `since` on and before `until` have the option.
pub(super) struct OptionRow {
    pub(super) option: IsolateOption,
    pub(super) name: &'static str,
    pub(super) short: Option<u8>,
    pub(super) value: OptionValue,
    since: IsolateVersion,
    until: IsolateVersion,
}

const FIRST: IsolateVersion = IsolateVersion::new(0, 0, 0);
const NEVER: IsolateVersion = IsolateVersion::new(u32::MAX, 0, 0);

const fn row(
    option: IsolateOption,
    name: &'static str,
    short: Option<u8>,
    value: OptionValue,
    since: IsolateVersion,
) -> OptionRow {
    OptionRow { option, name, short, value, since, until: NEVER }
}

/// All options of all releases up to 2.6, and of the fork of 1.8.1 that ReCodEx uses.
pub(super) const TABLE: [OptionRow; 41] = {
    use IsolateOption as O;
    use OptionValue::{Never, Optional, Required};
    const V1_8_1: IsolateVersion = IsolateVersion::new(1, 8, 1);
    const V1_9: IsolateVersion = IsolateVersion::new(1, 9, 0);
    const V1_10: IsolateVersion = IsolateVersion::new(1, 10, 0);
    const V2: IsolateVersion = IsolateVersion::new(2, 0, 0);
    const V2_3: IsolateVersion = IsolateVersion::new(2, 3, 0);
    // `--syscalls` came after the release 2.6, but isolate built from those sources also calls itself 2.6. The release refuses
    // the option by itself.
    const V2_6: IsolateVersion = IsolateVersion::new(2, 6, 0);
    [
        row(O::AsGid, "as-gid", None, Required, V2),
        row(O::AsUid, "as-uid", None, Required, V2),
        row(O::BoxId, "box-id", Some(b'b'), Required, FIRST),
        row(O::Cg, "cg", None, Never, FIRST),
        row(O::CgMem, "cg-mem", None, Required, FIRST),
        OptionRow { until: V2, ..row(O::CgTiming, "cg-timing", None, Never, FIRST) },
        row(O::Chdir, "chdir", Some(b'c'), Required, FIRST),
        row(O::CheckConfig, "check-config", None, Never, V2_3),
        row(O::Cleanup, "cleanup", None, Never, FIRST),
        row(O::Core, "core", None, Required, V1_10),
        row(O::Dir, "dir", Some(b'd'), Required, FIRST),
        row(O::Env, "env", Some(b'E'), Required, FIRST),
        row(O::ExtraTime, "extra-time", Some(b'x'), Required, FIRST),
        row(O::Fsize, "fsize", Some(b'f'), Required, FIRST),
        row(O::FullEnv, "full-env", Some(b'e'), Never, FIRST),
        row(O::InheritFds, "inherit-fds", None, Never, FIRST),
        row(O::Init, "init", None, Never, FIRST),
        row(O::Mem, "mem", Some(b'm'), Required, FIRST),
        row(O::Meta, "meta", Some(b'M'), Required, FIRST),
        OptionRow { until: V2, ..row(O::NoCgTiming, "no-cg-timing", None, Never, FIRST) },
        row(O::NoDefaultDirs, "no-default-dirs", Some(b'D'), Never, FIRST),
        row(O::OpenFiles, "open-files", Some(b'n'), Required, V1_9),
        row(O::PrintCgRoot, "print-cg-root", None, Never, V2),
        row(O::Processes, "processes", Some(b'p'), Optional, FIRST),
        row(O::Quota, "quota", Some(b'q'), Required, FIRST),
        row(O::Run, "run", None, Never, FIRST),
        row(O::ShareNet, "share-net", None, Never, FIRST),
        row(O::Silent, "silent", Some(b's'), Never, FIRST),
        row(O::SpecialFiles, "special-files", None, Never, V1_10),
        row(O::Stack, "stack", Some(b'k'), Required, FIRST),
        row(O::Stderr, "stderr", Some(b'r'), Required, FIRST),
        row(O::StderrToStdout, "stderr-to-stdout", None, Never, FIRST),
        row(O::Stdin, "stdin", Some(b'i'), Required, FIRST),
        row(O::Stdout, "stdout", Some(b'o'), Required, FIRST),
        row(O::Syscalls, "syscalls", None, Required, V2_6),
        row(O::Time, "time", Some(b't'), Required, FIRST),
        // Introduced by the fork of 1.8.1, and adopted by a later release.
        row(O::TtyHack, "tty-hack", None, Never, V1_8_1),
        row(O::Verbose, "verbose", Some(b'v'), Never, FIRST),
        row(O::Version, "version", None, Never, FIRST),
        row(O::Wait, "wait", None, Never, V2),
        row(O::WallTime, "wall-time", Some(b'w'), Required, FIRST),
    ]
};

impl OptionRow {
    fn of(option: IsolateOption) -> &'static Self {
        TABLE.iter().find(|row| row.option == option).expect("the table has a row for every option")
    }

    /// Returns whether a version has the option. True for an unknown version.
    pub(super) fn is_in(&self, version: Option<IsolateVersion>) -> bool {
        version.is_none_or(|version| self.since <= version && version < self.until)
    }
}

impl IsolateOption {
    /// The long name, without the dashes.
    #[must_use]
    pub fn name(self) -> &'static str {
        OptionRow::of(self).name
    }

    /// Returns whether a version has the option.
    #[must_use]
    pub fn is_known_to(self, version: IsolateVersion) -> bool {
        OptionRow::of(self).is_in(Some(version))
    }

    /// The mode that the option selects, if any.
    pub(super) fn mode(self) -> Option<IsolateMode> {
        Some(match self {
            Self::Init => IsolateMode::Init,
            Self::Run => IsolateMode::Run,
            Self::Cleanup => IsolateMode::Cleanup,
            Self::Version => IsolateMode::Version,
            Self::PrintCgRoot => IsolateMode::PrintCgRoot,
            Self::CheckConfig => IsolateMode::CheckConfig,
            _ => return None,
        })
    }
}

/// An option of a call, with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenOption {
    /// The option.
    pub option: IsolateOption,
    /// The value, if the option has one.
    pub value: Option<OsString>,
}

impl GivenOption {
    /// Returns the option as one argument in its long form: `--name` or `--name=value`.
    #[must_use]
    pub fn argument(&self) -> OsString {
        let mut text = OsString::from(format!("--{}", self.option.name()));
        if let Some(value) = &self.value {
            text.push("=");
            text.push(value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_each_option_once() {
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!(row.option.name(), row.name);
            let others = &TABLE[at + 1..];
            assert!(others.iter().all(|other| other.name != row.name && other.option != row.option));
            assert!(row.short.is_none() || others.iter().all(|other| other.short != row.short));
        }
        assert!(IsolateOption::CgTiming.is_known_to(IsolateVersion::new(1, 10, 1)));
        assert!(!IsolateOption::CgTiming.is_known_to(IsolateVersion::new(2, 0, 0)));
        assert!(!IsolateOption::Wait.is_known_to(IsolateVersion::new(1, 10, 1)));
    }
}
