//! isolate's options over all versions, read from an argument vector as `getopt_long` reads it.
//!
//! The reading is that of glibc: abbreviations of long options, bundles of short ones, values in the same or the next
//! argument, options behind the command unless `--` stands before. Whoever rewrites a call has to see in it what isolate
//! would see, or a rule that was overlooked applies all the same.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::{IsolateError, IsolateVersion};

/// An option of some version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named as on the command line, and described in isolate's manual")]
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

/// What isolate is to do.
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
enum OptionValue {
    Nothing,
    Value,
    /// In the same argument, or none.
    MaybeValue,
}

/// A line of isolate's option table. A version has it from `since` on and before `until`.
struct OptionRow {
    option: IsolateOption,
    name: &'static str,
    short: Option<u8>,
    takes: OptionValue,
    since: IsolateVersion,
    until: IsolateVersion,
}

const FIRST: IsolateVersion = IsolateVersion::new(0, 0, 0);
const NEVER: IsolateVersion = IsolateVersion::new(u32::MAX, 0, 0);

const fn row(
    option: IsolateOption,
    name: &'static str,
    short: Option<u8>,
    takes: OptionValue,
    since: IsolateVersion,
) -> OptionRow {
    OptionRow { option, name, short, takes, since, until: NEVER }
}

/// All options of all releases up to 2.6, and of the fork of 1.8.1 that ReCodEx uses.
const TABLE: [OptionRow; 41] = {
    use IsolateOption as O;
    use OptionValue::{MaybeValue, Nothing, Value};
    const V1_8_1: IsolateVersion = IsolateVersion::new(1, 8, 1);
    const V1_9: IsolateVersion = IsolateVersion::new(1, 9, 0);
    const V1_10: IsolateVersion = IsolateVersion::new(1, 10, 0);
    const V2: IsolateVersion = IsolateVersion::new(2, 0, 0);
    const V2_3: IsolateVersion = IsolateVersion::new(2, 3, 0);
    // What is built from the sources behind 2.6 calls itself 2.6 too, and is the first to know the option; the release of that
    // number then refuses it itself.
    const V2_6: IsolateVersion = IsolateVersion::new(2, 6, 0);
    [
        row(O::AsGid, "as-gid", None, Value, V2),
        row(O::AsUid, "as-uid", None, Value, V2),
        row(O::BoxId, "box-id", Some(b'b'), Value, FIRST),
        row(O::Cg, "cg", None, Nothing, FIRST),
        row(O::CgMem, "cg-mem", None, Value, FIRST),
        OptionRow { until: V2, ..row(O::CgTiming, "cg-timing", None, Nothing, FIRST) },
        row(O::Chdir, "chdir", Some(b'c'), Value, FIRST),
        row(O::CheckConfig, "check-config", None, Nothing, V2_3),
        row(O::Cleanup, "cleanup", None, Nothing, FIRST),
        row(O::Core, "core", None, Value, V1_10),
        row(O::Dir, "dir", Some(b'd'), Value, FIRST),
        row(O::Env, "env", Some(b'E'), Value, FIRST),
        row(O::ExtraTime, "extra-time", Some(b'x'), Value, FIRST),
        row(O::Fsize, "fsize", Some(b'f'), Value, FIRST),
        row(O::FullEnv, "full-env", Some(b'e'), Nothing, FIRST),
        row(O::InheritFds, "inherit-fds", None, Nothing, FIRST),
        row(O::Init, "init", None, Nothing, FIRST),
        row(O::Mem, "mem", Some(b'm'), Value, FIRST),
        row(O::Meta, "meta", Some(b'M'), Value, FIRST),
        OptionRow { until: V2, ..row(O::NoCgTiming, "no-cg-timing", None, Nothing, FIRST) },
        row(O::NoDefaultDirs, "no-default-dirs", Some(b'D'), Nothing, FIRST),
        row(O::OpenFiles, "open-files", Some(b'n'), Value, V1_9),
        row(O::PrintCgRoot, "print-cg-root", None, Nothing, V2),
        row(O::Processes, "processes", Some(b'p'), MaybeValue, FIRST),
        row(O::Quota, "quota", Some(b'q'), Value, FIRST),
        row(O::Run, "run", None, Nothing, FIRST),
        row(O::ShareNet, "share-net", None, Nothing, FIRST),
        row(O::Silent, "silent", Some(b's'), Nothing, FIRST),
        row(O::SpecialFiles, "special-files", None, Nothing, V1_10),
        row(O::Stack, "stack", Some(b'k'), Value, FIRST),
        row(O::Stderr, "stderr", Some(b'r'), Value, FIRST),
        row(O::StderrToStdout, "stderr-to-stdout", None, Nothing, FIRST),
        row(O::Stdin, "stdin", Some(b'i'), Value, FIRST),
        row(O::Stdout, "stdout", Some(b'o'), Value, FIRST),
        row(O::Syscalls, "syscalls", None, Value, V2_6),
        row(O::Time, "time", Some(b't'), Value, FIRST),
        // In the fork before it came to a release.
        row(O::TtyHack, "tty-hack", None, Nothing, V1_8_1),
        row(O::Verbose, "verbose", Some(b'v'), Nothing, FIRST),
        row(O::Version, "version", None, Nothing, FIRST),
        row(O::Wait, "wait", None, Nothing, V2),
        row(O::WallTime, "wall-time", Some(b'w'), Value, FIRST),
    ]
};

impl OptionRow {
    fn of(option: IsolateOption) -> &'static Self {
        TABLE.iter().find(|row| row.option == option).expect("the table has every option")
    }

    /// Whether a version has it; any does where the version is not known.
    fn is_in(&self, version: Option<IsolateVersion>) -> bool {
        version.is_none_or(|version| self.since <= version && version < self.until)
    }
}

impl IsolateOption {
    /// The long name, without the dashes.
    #[must_use]
    pub fn name(self) -> &'static str {
        OptionRow::of(self).name
    }

    /// Whether this version takes it.
    #[must_use]
    pub fn is_known_to(self, version: IsolateVersion) -> bool {
        OptionRow::of(self).is_in(Some(version))
    }

    fn mode(self) -> Option<IsolateMode> {
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

/// An option as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenOption {
    /// Which.
    pub option: IsolateOption,
    /// Its value, where it has one.
    pub value: Option<OsString>,
}

impl GivenOption {
    /// The option as one argument in its long form: `--name` or `--name=value`.
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

/// A call of isolate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolateCall {
    /// All options in their order, those that choose the mode among them.
    pub options: Vec<GivenOption>,
    /// What isolate is to do; `None` where the call does not say.
    pub mode: Option<IsolateMode>,
    /// The command to run, with its arguments.
    pub arguments: Vec<OsString>,
}

impl IsolateCall {
    /// Reads the arguments that follow the program's name.
    ///
    /// An exact name is taken whichever version has it. With `version`, abbreviations stand for names of that version only.
    /// `in_order` is what `POSIXLY_CORRECT` in the environment asks for: options end at the first other argument.
    ///
    /// # Errors
    /// What isolate would refuse too: an option that is unknown, ambiguous, lacks its value or has an unwanted one, and
    /// modes that exclude each other.
    pub fn parse(
        arguments: &[OsString],
        version: Option<IsolateVersion>,
        in_order: bool,
    ) -> Result<Self, IsolateError> {
        let mut call = Self { options: Vec::new(), mode: None, arguments: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_bytes() {
                b"--" => {
                    call.arguments.extend(rest.cloned());
                    break;
                }
                [b'-', b'-', long @ ..] => call.long(long, version, &mut rest)?,
                [b'-', bundle @ ..] if !bundle.is_empty() => call.short(bundle, &mut rest)?,
                _ => {
                    call.arguments.push(argument.clone());
                    if in_order {
                        call.arguments.extend(rest.cloned());
                        break;
                    }
                }
            }
        }
        Ok(call)
    }

    /// `name`, `name=value`, or `name` with the value in the next argument.
    fn long<'a>(
        &mut self,
        text: &[u8],
        version: Option<IsolateVersion>,
        rest: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), IsolateError> {
        let mut parts = text.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let value = parts.next().map(|value| OsString::from_vec(value.to_vec()));
        let row = find_long(name, version)?;
        let value = match (row.takes, value) {
            (OptionValue::Nothing, Some(_)) => return Err(IsolateError::UnwantedValue(row.name)),
            (OptionValue::Value, None) => {
                Some(rest.next().ok_or(IsolateError::MissingValue(row.name))?.clone())
            }
            (_, value) => value,
        };
        self.add(row.option, value)
    }

    /// Letters without values, then at most one with a value in the rest of the argument or in the next one.
    fn short<'a>(
        &mut self,
        bundle: &[u8],
        rest: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), IsolateError> {
        for (at, letter) in bundle.iter().enumerate() {
            let unknown = || IsolateError::UnknownOption(OsStr::from_bytes(&[b'-', *letter]).to_owned());
            let row = TABLE.iter().find(|row| row.short == Some(*letter)).ok_or_else(unknown)?;
            let behind = &bundle[at + 1..];
            let attached = (!behind.is_empty()).then(|| OsString::from_vec(behind.to_vec()));
            match row.takes {
                OptionValue::Nothing => {
                    self.add(row.option, None)?;
                    continue;
                }
                OptionValue::MaybeValue => self.add(row.option, attached)?,
                OptionValue::Value => {
                    let value = match attached {
                        Some(value) => value,
                        None => rest.next().ok_or(IsolateError::MissingValue(row.name))?.clone(),
                    };
                    self.add(row.option, Some(value))?;
                }
            }
            break;
        }
        Ok(())
    }

    fn add(&mut self, option: IsolateOption, value: Option<OsString>) -> Result<(), IsolateError> {
        if let Some(mode) = option.mode() {
            let other = self.options.iter().find(|given| given.option.mode().is_some_and(|old| old != mode));
            if let Some(other) = other {
                return Err(IsolateError::TwoModes(other.option.name(), option.name()));
            }
            self.mode = Some(mode);
        }
        self.options.push(GivenOption { option, value });
        Ok(())
    }

    /// Whether the option is among those given.
    #[must_use]
    pub fn has(&self, option: IsolateOption) -> bool {
        self.options.iter().any(|given| given.option == option)
    }

    /// The values of an option, in the order given.
    pub fn values(&self, option: IsolateOption) -> impl DoubleEndedIterator<Item = &OsStr> {
        let of_option = move |given: &&GivenOption| given.option == option;
        self.options.iter().filter(of_option).filter_map(|given| given.value.as_deref())
    }

    /// The value that counts: of options that are given more than once, the last one does.
    #[must_use]
    pub fn value(&self, option: IsolateOption) -> Option<&OsStr> {
        self.values(option).next_back()
    }

    /// The box's number, 0 where none is given; `None` for what is not plainly a number.
    #[must_use]
    pub fn box_id(&self) -> Option<u32> {
        let Some(text) = self.value(IsolateOption::BoxId) else { return Some(0) };
        let digits = text.to_str()?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    }

    /// The arguments that follow the program's name: options in their long form, then `--` and the command.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let options = self.options.iter().map(GivenOption::argument);
        options.chain(std::iter::once("--".into())).chain(self.arguments.iter().cloned()).collect()
    }
}

/// The option of this name; or the one whose name starts like this.
fn find_long(name: &[u8], version: Option<IsolateVersion>) -> Result<&'static OptionRow, IsolateError> {
    if let Some(exact) = TABLE.iter().find(|row| row.name.as_bytes() == name) {
        return Ok(exact);
    }
    let given = || OsStr::from_bytes(&[b"--", name].concat()).to_owned();
    let mut like = TABLE.iter().filter(|row| row.is_in(version) && row.name.as_bytes().starts_with(name));
    match (like.next(), like.next()) {
        (None, _) => Err(IsolateError::UnknownOption(given())),
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(IsolateError::AmbiguousOption(given())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect()
    }

    fn parse(line: &str) -> Result<IsolateCall, IsolateError> {
        IsolateCall::parse(&arguments(line), None, false)
    }

    /// The call in its long form.
    #[track_caller]
    fn reads(line: &str, expected: &str) {
        let call = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(call.to_arguments(), arguments(expected), "{line}");
    }

    #[test]
    fn every_way_to_write_an_option_is_read() {
        let cases = [
            ("--box-id=7 --run -- a -b", "--box-id=7 --run -- a -b"),
            ("--box-id 7 --run -- a", "--box-id=7 --run -- a"),
            ("-b7 -b 8 --run -- a", "--box-id=7 --box-id=8 --run -- a"),
            ("--pro --proc=4 -p -p9 --run", "--processes --processes=4 --processes --processes=9 --run --"),
            (
                "-vvse -vb3 -Dp --run",
                "--verbose --verbose --silent --full-env --verbose --box-id=3 --no-default-dirs --processes --run --",
            ),
            ("--time=1=2 --env=A=B=C --di=x", "--time=1=2 --env=A=B=C --dir=x --"),
            ("--meta= -M -", "--meta= --meta=- --"),
            ("-o -- --run x", "--stdout=-- --run -- x"),
            ("--stdin - --run", "--stdin=- --run --"),
        ];
        for (line, expected) in cases {
            reads(line, expected);
        }
    }

    #[test]
    fn options_behind_the_command_count_until_two_dashes() {
        reads("prog --run -b 2 x -- --cg y", "--run --box-id=2 -- prog x --cg y");
        reads("--run - -v", "--run --verbose -- -");
        let call = IsolateCall::parse(&arguments("--run prog --cg"), None, true).unwrap();
        assert_eq!(call.arguments, arguments("prog --cg"));
        assert!(!call.has(IsolateOption::Cg));
        let empty = IsolateCall::parse(&[OsString::new(), "--cg".into()], None, false).unwrap();
        assert!(empty.has(IsolateOption::Cg) && empty.arguments == [OsString::new()]);
    }

    #[test]
    fn what_isolate_refuses_is_refused() {
        type Check = fn(&IsolateError) -> bool;
        let cases: [(&str, Check); 9] = [
            ("--nope", |error| matches!(error, IsolateError::UnknownOption(name) if name == "--nope")),
            ("-vz", |error| matches!(error, IsolateError::UnknownOption(name) if name == "-z")),
            ("--run=1", |error| matches!(error, IsolateError::UnwantedValue("run"))),
            ("--box-id", |error| matches!(error, IsolateError::MissingValue("box-id"))),
            ("-vM", |error| matches!(error, IsolateError::MissingValue("meta"))),
            ("--in", |error| matches!(error, IsolateError::AmbiguousOption(name) if name == "--in")),
            ("--=x", |error| matches!(error, IsolateError::AmbiguousOption(_))),
            ("--run --init", |error| matches!(error, IsolateError::TwoModes("run", "init"))),
            ("-\u{e9}", |error| matches!(error, IsolateError::UnknownOption(_))),
        ];
        for (line, check) in cases {
            let error = parse(line).unwrap_err();
            assert!(check(&error), "{line}: {error:?}");
        }
        assert_eq!(parse("--run --run -- a").unwrap().mode, Some(IsolateMode::Run));
        assert_eq!(parse("-v").unwrap().mode, None);
    }

    #[test]
    fn abbreviations_stand_for_names_of_the_version() {
        let chdir = arguments("--ch=/tmp --cg-t");
        assert!(matches!(IsolateCall::parse(&chdir, None, false), Err(IsolateError::AmbiguousOption(_))));
        let old = IsolateCall::parse(&chdir, Some(IsolateVersion::new(1, 10, 1)), false).unwrap();
        assert_eq!(old.value(IsolateOption::Chdir), Some(OsStr::new("/tmp")));
        let new = Some(IsolateVersion::new(2, 6, 0));
        assert!(matches!(IsolateCall::parse(&chdir, new, false), Err(IsolateError::AmbiguousOption(_))));
        // A whole name is the option whatever the version: what to do about it is for the caller to say.
        assert!(
            IsolateCall::parse(&arguments("--cg-timing"), new, false).unwrap().has(IsolateOption::CgTiming)
        );
    }

    #[test]
    fn the_last_value_counts_and_box_ids_are_plain_numbers() {
        let call = parse("--meta=a -b1 -M b -b 12").unwrap();
        assert_eq!((call.value(IsolateOption::Meta), call.box_id()), (Some(OsStr::new("b")), Some(12)));
        assert_eq!(parse("--run").unwrap().box_id(), Some(0));
        for text in ["-b-1", "-b+1", "-b1x", "--box-id=", "-b99999999999"] {
            assert_eq!(parse(text).unwrap().box_id(), None, "{text}");
        }
    }

    #[test]
    fn table_names_each_option_once() {
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
