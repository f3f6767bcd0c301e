//! The arguments of `isolate --init`, `--run` and `--cleanup`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::{DirRule, GivenOption, IsolateError, IsolateOption, IsolateVersion, components, root_rules};
use crate::sandbox::environment::Variable;

/// Returns the arguments of `isolate --init`, including the `options` that `--init` accepts.
pub(super) fn init_arguments(id: u32, options: &[GivenOption]) -> Vec<OsString> {
    let is_for_init =
        |option: &&GivenOption| matches!(option.option, IsolateOption::Cg | IsolateOption::Quota);
    let arguments = options.iter().filter(is_for_init).map(GivenOption::argument);
    arguments.chain([box_id(id), "--init".into()]).collect()
}

/// Returns the arguments of `isolate --cleanup`.
pub(super) fn cleanup_arguments(id: u32, cg: bool) -> Vec<OsString> {
    cg.then(|| "--cg".into()).into_iter().chain([box_id(id), "--cleanup".into()]).collect()
}

fn box_id(id: u32) -> OsString {
    format!("--box-id={id}").into()
}

/// A call of `isolate --run`.
#[derive(Debug)]
pub(super) struct IsolateRun<'a> {
    pub(super) version: IsolateVersion,
    pub(super) id: u32,
    /// The mounted root, in the mount namespace that isolate is started in.
    pub(super) root: &'a Path,
    pub(super) writable: bool,
    /// The caller's rules, as [`below_root`] returns them.
    pub(super) dirs: &'a [DirRule],
    pub(super) options: &'a [GivenOption],
    pub(super) variables: &'a [Variable],
    pub(super) chdir: &'a Path,
    pub(super) meta: &'a Path,
    pub(super) words: &'a [OsString],
}

impl IsolateRun<'_> {
    /// Returns the arguments.
    ///
    /// # Errors
    /// [`IsolateError::Rule`] if isolate's syntax cannot express a rule.
    pub(super) fn arguments(&self) -> Result<Vec<OsString>, IsolateError> {
        let valued = |option: IsolateOption, value: &OsStr| {
            GivenOption { option, value: Some(value.to_owned()) }.argument()
        };
        let mut arguments = vec![box_id(self.id), valued(IsolateOption::Meta, self.meta.as_os_str())];
        let options = self.options.iter().filter(|option| option.option != IsolateOption::Quota);
        arguments.extend(options.map(GivenOption::argument));
        arguments.push("--no-default-dirs".into());
        for rule in root_rules(self.version, self.root, self.writable).iter().chain(self.dirs) {
            arguments.push(valued(IsolateOption::Dir, &rule.to_value()?));
        }
        for variable in self.variables {
            let mut text = variable.name().to_owned();
            match variable {
                // With an empty value, isolate removes the variable: it cannot set one to the empty string.
                Variable::Set(_, value) => {
                    text.push("=");
                    text.push(value);
                }
                Variable::Unset(_) => text.push("="),
                Variable::Inherit(_) => {}
            }
            arguments.push(valued(IsolateOption::Env, &text));
        }
        arguments.push(valued(IsolateOption::Chdir, self.chdir.as_os_str()));
        arguments.extend(["--run".into(), "--".into()]);
        arguments.extend(self.words.iter().cloned());
        Ok(arguments)
    }
}

/// Returns `rule` for the path `resolved` in the root, spelled with `./` so that isolate applies it after the rule that
/// mounts the root.
pub(super) fn below_root(rule: &DirRule, resolved: &Path) -> DirRule {
    let mut inside = OsString::from(".");
    for name in components(resolved.as_os_str()) {
        inside.push("/");
        inside.push(name);
    }
    DirRule { inside, ..rule.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(option: IsolateOption, value: &str) -> GivenOption {
        GivenOption { option, value: (!value.is_empty()).then(|| value.into()) }
    }

    fn text(arguments: &[OsString]) -> String {
        arguments.join(OsStr::new("\n")).into_string().unwrap()
    }

    #[test]
    fn init_and_cleanup_receive_only_box_options() {
        let options = [
            option(IsolateOption::Cg, ""),
            option(IsolateOption::Time, "1"),
            option(IsolateOption::Quota, "10,20"),
        ];
        assert_eq!(text(&init_arguments(7, &options)), "--cg\n--quota=10,20\n--box-id=7\n--init");
        assert_eq!(text(&init_arguments(7, &[])), "--box-id=7\n--init");
        assert_eq!(text(&cleanup_arguments(7, true)), "--cg\n--box-id=7\n--cleanup");
        assert_eq!(text(&cleanup_arguments(7, false)), "--box-id=7\n--cleanup");
    }

    #[test]
    fn run_lists_the_root_before_other_rules_and_variables_in_order() {
        let rule = DirRule::parse(OsStr::new("data=/srv/data:rw")).unwrap();
        let dirs = [below_root(&rule, Path::new("/mnt/data"))];
        let options = [
            option(IsolateOption::Cg, ""),
            option(IsolateOption::Time, "1.5"),
            option(IsolateOption::Quota, "10,20"),
            option(IsolateOption::Processes, ""),
        ];
        let set = |name: &str, value: &str| Variable::Set(name.into(), value.into());
        let variables = [
            set("A", "1"),
            set("E", ""),
            set("A", "2"),
            Variable::Inherit("B".into()),
            Variable::Unset("C".into()),
        ];
        let run = IsolateRun {
            version: IsolateVersion::new(2, 6, 0),
            id: 7,
            root: Path::new("/run/rcx-imagefs/root"),
            writable: true,
            dirs: &dirs,
            options: &options,
            variables: &variables,
            chdir: Path::new("/box"),
            meta: Path::new("/proc/self/fd/3"),
            words: &["/bin/sh".into(), "-c".into(), "--run".into()],
        };
        let expected = "--box-id=7\n--meta=/proc/self/fd/3\n--cg\n--time=1.5\n--processes\n--no-default-dirs\n\
            --dir=.=/run/rcx-imagefs/root:rw\n--dir=./box=./box:rw\n--dir=./dev=/dev:dev:norec\n\
            --dir=./dev/shm=tmpfs:fs:rw\n--dir=./dev/pts=/dev/pts:rw:maybe:dev\n--dir=./proc=proc:fs\n\
            --dir=./proc/1=/run/rcx-imagefs/root/sys\n--dir=./tmp:tmp\n--dir=./mnt/data=/srv/data:rw\n\
            --env=A=1\n--env=E=\n--env=A=2\n--env=B\n--env=C=\n--chdir=/box\n--run\n--\n/bin/sh\n-c\n--run";
        assert_eq!(text(&run.arguments().unwrap()), expected);
    }
}
