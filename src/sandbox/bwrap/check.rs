//! Refuses options and directory rules that bubblewrap would silently ignore.

use std::ffi::OsStr;
use std::path::Path;

use crate::sandbox::RunSpec;
use crate::sandbox::error::SandboxError;
use crate::sandbox::isolate::{DirRule, GivenOption, IsolateOption, RuleTarget};

/// Checks that bubblewrap supports everything that the run requests.
pub(super) fn check(spec: &RunSpec) -> Result<(), SandboxError> {
    spec.options.iter().try_for_each(check_option)?;
    spec.dirs.iter().try_for_each(check_rule)?;
    if spec.box_id.is_some() {
        let reason = "only isolate has numbered boxes";
        return Err(SandboxError::NotWithBubblewrap { option: IsolateOption::BoxId.name(), reason });
    }
    Ok(())
}

fn check_option(entry: &GivenOption) -> Result<(), SandboxError> {
    let option = entry.option.name();
    let refused = |reason| Err(SandboxError::NotWithBubblewrap { option, reason });
    match entry.option {
        IsolateOption::Cg
        | IsolateOption::CgMem
        | IsolateOption::Core
        | IsolateOption::ExtraTime
        | IsolateOption::Fsize
        | IsolateOption::Mem
        | IsolateOption::OpenFiles
        | IsolateOption::Processes
        | IsolateOption::Quota
        | IsolateOption::Stack
        | IsolateOption::Time
        | IsolateOption::WallTime => Err(SandboxError::NoLimits(option)),
        IsolateOption::Syscalls => refused("system calls are not filtered under bubblewrap"),
        IsolateOption::TtyHack => refused("use `--tty`, which gives the program a terminal of its own"),
        IsolateOption::Stdin | IsolateOption::Stdout | IsolateOption::Stderr
            if path_in_box(entry.value.as_deref().unwrap_or_default()).is_none() =>
        {
            refused("under bubblewrap it must name a file in the box")
        }
        _ => Ok(()),
    }
}

fn check_rule(rule: &DirRule) -> Result<(), SandboxError> {
    let refused = |reason| Err(SandboxError::NotWithBubblewrap { option: IsolateOption::Dir.name(), reason });
    match &rule.target {
        RuleTarget::Filesystem(kind) if kind != "tmpfs" && kind != "proc" => {
            refused("bubblewrap mounts only the filesystems tmpfs and proc")
        }
        RuleTarget::Directory(outside) if !Path::new(outside).is_absolute() => {
            refused("paths that begin with `./` are relative to isolate's own directory")
        }
        RuleTarget::Directory(_) if rule.flags.dev => refused("bubblewrap does not show devices of the host"),
        _ => Ok(()),
    }
}

/// Returns the path of a redirection relative to the box, or `None` if it leads out of the box. Like isolate, this resolves a
/// relative path in the box.
pub(super) fn path_in_box(path: &OsStr) -> Option<&Path> {
    let path = Path::new(path);
    let path = if path.is_absolute() { path.strip_prefix("/box").ok()? } else { path };
    path.file_name().is_some().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_options_and_rules_are_refused() {
        let checked = |option: IsolateOption, value: &str| {
            let value = (!value.is_empty()).then(|| value.into());
            let options = vec![GivenOption { option, value }];
            check(&RunSpec { options, ..RunSpec::default() }).map_err(|error| error.to_string())
        };
        for option in [
            IsolateOption::Time,
            IsolateOption::WallTime,
            IsolateOption::Mem,
            IsolateOption::Cg,
            IsolateOption::Processes,
            IsolateOption::Quota,
            IsolateOption::OpenFiles,
        ] {
            let error = checked(option, "1").unwrap_err();
            assert_eq!(error, format!("option `--{}`: bubblewrap enforces no limits", option.name()));
        }
        for (option, value) in [
            (IsolateOption::Syscalls, "0"),
            (IsolateOption::TtyHack, ""),
            (IsolateOption::Stdin, "/etc/passwd"),
            (IsolateOption::Stdout, ""),
        ] {
            assert!(checked(option, value).is_err(), "{option:?}");
        }
        for (option, value) in [
            (IsolateOption::ShareNet, ""),
            (IsolateOption::FullEnv, ""),
            (IsolateOption::Stdin, "in"),
            (IsolateOption::Stdout, "/box/o"),
        ] {
            checked(option, value).unwrap();
        }
        let with_rule = |rule: &str| {
            let dirs = vec![DirRule::parse(OsStr::new(rule)).unwrap()];
            check(&RunSpec { dirs, ..RunSpec::default() })
        };
        for rule in ["sys=sysfs:fs", "a=./b", "dev=/dev:dev"] {
            assert!(with_rule(rule).is_err(), "{rule}");
        }
        for rule in ["data=/srv:rw:maybe", "a:tmp", "a=tmpfs:fs", "tmp="] {
            with_rule(rule).unwrap();
        }
        assert!(check(&RunSpec { box_id: Some(1), ..RunSpec::default() }).is_err());
    }
}
