//! Parses a call of isolate as glibc's `getopt_long` does.
//!
//! That includes abbreviated long options, bundled short options, values in the same or the next argument, and options
//! after the command unless `--` comes before them. The stand-in for isolate, which rewrites calls, must see every option
//! that isolate would see: an overlooked directory rule would still take effect.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::options::{OptionRow, OptionValue, TABLE};
use super::{GivenOption, IsolateError, IsolateMode, IsolateOption, IsolateVersion};

/// A call of isolate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolateCall {
    /// All options in their order, including those that select the mode.
    pub options: Vec<GivenOption>,
    /// The mode that the call selects; `None` if it selects no mode.
    pub mode: Option<IsolateMode>,
    /// The command to run, with its arguments.
    pub arguments: Vec<OsString>,
}

impl IsolateCall {
    /// Parses the arguments after the program's name.
    ///
    /// A full name is accepted if any version has the option. With `version`, an abbreviation matches only options of that
    /// version. With `in_order`, as with `POSIXLY_CORRECT` in the environment, options end at the first other argument.
    ///
    /// # Errors
    /// isolate would refuse the call too: an option is unknown, ambiguous, lacks its value or has an unexpected value, or two
    /// modes exclude each other.
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

    /// Parses `name`, `name=value`, or `name` with the value in the next argument.
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
        let value = match (row.value, value) {
            (OptionValue::Never, Some(_)) => return Err(IsolateError::UnwantedValue(row.name)),
            (OptionValue::Required, None) => {
                Some(rest.next().ok_or(IsolateError::MissingValue(row.name))?.clone())
            }
            (_, value) => value,
        };
        self.add(row.option, value)
    }

    /// Parses a bundle of letters. The first option with a value takes it from the rest of the bundle or the next argument.
    fn short<'a>(
        &mut self,
        bundle: &[u8],
        rest: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), IsolateError> {
        for (at, letter) in bundle.iter().enumerate() {
            let unknown = || IsolateError::UnknownOption(OsStr::from_bytes(&[b'-', *letter]).to_owned());
            let row = TABLE.iter().find(|row| row.short == Some(*letter)).ok_or_else(unknown)?;
            let rest_of_bundle = &bundle[at + 1..];
            let attached = (!rest_of_bundle.is_empty()).then(|| OsString::from_vec(rest_of_bundle.to_vec()));
            match row.value {
                OptionValue::Never => {
                    self.add(row.option, None)?;
                    continue;
                }
                OptionValue::Optional => self.add(row.option, attached)?,
                OptionValue::Required => {
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
            let other = self.options.iter().find(|entry| entry.option.mode().is_some_and(|old| old != mode));
            if let Some(other) = other {
                return Err(IsolateError::TwoModes(other.option.name(), option.name()));
            }
            self.mode = Some(mode);
        }
        self.options.push(GivenOption { option, value });
        Ok(())
    }

    /// Returns whether the call has the option.
    #[must_use]
    pub fn has(&self, option: IsolateOption) -> bool {
        self.options.iter().any(|entry| entry.option == option)
    }

    /// Returns the values of an option, in their order.
    pub fn values(&self, option: IsolateOption) -> impl DoubleEndedIterator<Item = &OsStr> {
        let of_option = move |entry: &&GivenOption| entry.option == option;
        self.options.iter().filter(of_option).filter_map(|entry| entry.value.as_deref())
    }

    /// Returns the value of an option. If the option is repeated, the last value applies.
    #[must_use]
    pub fn value(&self, option: IsolateOption) -> Option<&OsStr> {
        self.values(option).next_back()
    }

    /// Returns the number of the box, 0 by default; `None` if the value contains anything but digits.
    #[must_use]
    pub fn box_id(&self) -> Option<u32> {
        let Some(text) = self.value(IsolateOption::BoxId) else { return Some(0) };
        let digits = text.to_str()?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    }

    /// Returns the arguments after the program's name: options in their long form, then `--` and the command.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let options = self.options.iter().map(GivenOption::argument);
        options.chain(std::iter::once("--".into())).chain(self.arguments.iter().cloned()).collect()
    }
}

/// Returns the option with this name, otherwise the only option whose name begins with it.
fn find_long(name: &[u8], version: Option<IsolateVersion>) -> Result<&'static OptionRow, IsolateError> {
    if let Some(exact) = TABLE.iter().find(|row| row.name.as_bytes() == name) {
        return Ok(exact);
    }
    let option = || OsStr::from_bytes(&[b"--", name].concat()).to_owned();
    let mut matches = TABLE.iter().filter(|row| row.is_in(version) && row.name.as_bytes().starts_with(name));
    match (matches.next(), matches.next()) {
        (None, _) => Err(IsolateError::UnknownOption(option())),
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(IsolateError::AmbiguousOption(option())),
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

    /// Compares a parsed call with `expected`, its long form.
    #[track_caller]
    fn assert_parsed(line: &str, expected: &str) {
        let call = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(call.to_arguments(), arguments(expected), "{line}");
    }

    #[test]
    fn every_way_to_write_an_option_is_parsed() {
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
            assert_parsed(line, expected);
        }
    }

    #[test]
    fn options_after_the_command_count_until_two_dashes() {
        assert_parsed("prog --run -b 2 x -- --cg y", "--run --box-id=2 -- prog x --cg y");
        assert_parsed("--run - -v", "--run --verbose -- -");
        let call = IsolateCall::parse(&arguments("--run prog --cg"), None, true).unwrap();
        assert_eq!(call.arguments, arguments("prog --cg"));
        assert!(!call.has(IsolateOption::Cg));
        let empty = IsolateCall::parse(&[OsString::new(), "--cg".into()], None, false).unwrap();
        assert!(empty.has(IsolateOption::Cg) && empty.arguments == [OsString::new()]);
    }

    #[test]
    fn call_that_isolate_refuses_is_an_error() {
        type ErrorCheck = fn(&IsolateError) -> bool;
        let cases: [(&str, ErrorCheck); 9] = [
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
    fn abbreviations_match_options_of_the_version() {
        let chdir = arguments("--ch=/tmp --cg-t");
        assert!(matches!(IsolateCall::parse(&chdir, None, false), Err(IsolateError::AmbiguousOption(_))));
        let old = IsolateCall::parse(&chdir, Some(IsolateVersion::new(1, 10, 1)), false).unwrap();
        assert_eq!(old.value(IsolateOption::Chdir), Some(OsStr::new("/tmp")));
        let new = Some(IsolateVersion::new(2, 6, 0));
        assert!(matches!(IsolateCall::parse(&chdir, new, false), Err(IsolateError::AmbiguousOption(_))));
        // A full name is accepted for every version: the caller decides what to do about it.
        assert!(
            IsolateCall::parse(&arguments("--cg-timing"), new, false).unwrap().has(IsolateOption::CgTiming)
        );
    }

    #[test]
    fn last_value_applies_and_box_ids_are_digits() {
        let call = parse("--meta=a -b1 -M b -b 12").unwrap();
        assert_eq!((call.value(IsolateOption::Meta), call.box_id()), (Some(OsStr::new("b")), Some(12)));
        assert_eq!(parse("--run").unwrap().box_id(), Some(0));
        for text in ["-b-1", "-b+1", "-b1x", "--box-id=", "-b99999999999"] {
            assert_eq!(parse(text).unwrap().box_id(), None, "{text}");
        }
    }
}
