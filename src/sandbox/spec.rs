//! What a run asks for, and the arguments of isolate that say it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::copy::FileCopy;
use super::error::SandboxError;
use super::isolate::{DirRule, GivenOption, IsolateError, IsolateOption, IsolateVersion, root_rules};
use super::{DEFAULT_PATH, isolate};
use crate::image::ImageConfig;
use crate::roots::Upper;

/// What a run asks for.
#[derive(Debug, Clone, Default)]
pub struct RunSpec {
    /// Limits, redirections and what else goes to isolate as it is.
    pub options: Vec<GivenOption>,
    /// Variables: `NAME=VALUE`, `NAME=` to have none, `NAME` for the caller's own. They come after the image's.
    pub env: Vec<OsString>,
    /// Directories of the host beside the image.
    pub dirs: Vec<DirRule>,
    /// Where the program starts, in place of the image's directory.
    pub chdir: Option<PathBuf>,
    /// The box; a free one where none is named.
    pub box_id: Option<u32>,
    /// Where the program's writes outside of the box go.
    pub upper: Upper,
    /// In place of the image's entrypoint; empty for none.
    pub entrypoint: Option<OsString>,
    /// The command; the image's own where it is empty.
    pub command: Vec<OsString>,
    /// Files for the box.
    pub copy_in: Vec<FileCopy>,
    /// Files of the box to be kept.
    pub copy_out: Vec<FileCopy>,
    /// Whether standard output is the caller's own business: the program's goes to standard error.
    pub stdout_to_stderr: bool,
}

impl RunSpec {
    pub(super) fn has(&self, option: IsolateOption) -> bool {
        self.options.iter().any(|given| given.option == option)
    }

    /// Whether control groups are used.
    pub(super) fn cg(&self) -> bool {
        self.has(IsolateOption::Cg)
    }

    /// Checks that this isolate knows all that is asked of it.
    pub(super) fn check(&self, version: IsolateVersion) -> Result<(), SandboxError> {
        match self.options.iter().find(|given| !given.option.is_known_to(version)) {
            Some(given) => Err(SandboxError::Unknown { option: given.option.name(), version }),
            None if self.has(IsolateOption::CgMem) && !self.cg() => Err(SandboxError::Needs {
                option: IsolateOption::CgMem.name(),
                needed: IsolateOption::Cg.name(),
            }),
            None => Ok(()),
        }
    }
}

/// A rule for one variable of the program's environment; later ones go before earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variable {
    Set(OsString, OsString),
    Unset(OsString),
    /// As the caller has it.
    Inherit(OsString),
}

impl Variable {
    fn name(&self) -> &OsStr {
        match self {
            Self::Set(name, _) | Self::Unset(name) | Self::Inherit(name) => name,
        }
    }
}

/// The rules for the environment: a search path as other runtimes give it, the image's variables, the caller's.
pub(super) fn environment(config: &ImageConfig, given: &[OsString]) -> Result<Vec<Variable>, SandboxError> {
    let mut variables = vec![Variable::Set("PATH".into(), DEFAULT_PATH.into())];
    for entry in &config.env {
        if entry.contains('\0') {
            return Err(SandboxError::ImageConfig("a variable has a zero byte in it"));
        }
        // Without `=` it would be a wish for the host's variable, which an image does not get.
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                variables.push(Variable::Set(name.into(), value.into()))
            }
            _ => tracing::info!("the image's variable `{entry}` is not of the form NAME=VALUE: left out"),
        }
    }
    for entry in given {
        let bytes = entry.as_bytes();
        let name = |end: usize| OsStr::from_bytes(&bytes[..end]).to_owned();
        variables.push(match bytes.iter().position(|byte| *byte == b'=') {
            Some(0) => return Err(SandboxError::Variable(entry.clone())),
            None if bytes.is_empty() => return Err(SandboxError::Variable(entry.clone())),
            None => Variable::Inherit(entry.clone()),
            Some(end) if end + 1 == bytes.len() => Variable::Unset(name(end)),
            Some(end) => Variable::Set(name(end), OsStr::from_bytes(&bytes[end + 1..]).to_owned()),
        });
    }
    Ok(variables)
}

/// The environment that the rules make of the caller's, which `full` has as a start.
pub(super) fn apply(
    variables: &[Variable],
    full: bool,
    callers: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let callers: Vec<(OsString, OsString)> = callers.collect();
    let mut result = if full { callers.clone() } else { Vec::new() };
    for variable in variables {
        result.retain(|(name, _)| name != variable.name());
        match variable {
            Variable::Set(name, value) => result.push((name.clone(), value.clone())),
            Variable::Unset(_) => {}
            Variable::Inherit(wanted) => {
                result.extend(callers.iter().find(|(name, _)| name == wanted).cloned());
            }
        }
    }
    result
}

/// Options that `--init` takes as well.
fn is_for_init(option: IsolateOption) -> bool {
    matches!(option, IsolateOption::Cg | IsolateOption::Quota)
}

fn box_id(id: u32) -> OsString {
    format!("--box-id={id}").into()
}

/// The arguments of `isolate --init`.
pub(super) fn init_arguments(id: u32, options: &[GivenOption]) -> Vec<OsString> {
    let given = options.iter().filter(|given| is_for_init(given.option)).map(GivenOption::argument);
    given.chain([box_id(id), "--init".into()]).collect()
}

/// The arguments of `isolate --cleanup`.
pub(super) fn cleanup_arguments(id: u32, cg: bool) -> Vec<OsString> {
    cg.then(|| "--cg".into()).into_iter().chain([box_id(id), "--cleanup".into()]).collect()
}

/// What `isolate --run` is to do.
#[derive(Debug)]
pub(super) struct IsolateRun<'a> {
    pub(super) version: IsolateVersion,
    pub(super) id: u32,
    /// Where the root is in the mount namespace that isolate is started in.
    pub(super) root: &'a Path,
    pub(super) writable: bool,
    /// The caller's rules, their places without links.
    pub(super) dirs: &'a [DirRule],
    pub(super) options: &'a [GivenOption],
    pub(super) variables: &'a [Variable],
    pub(super) chdir: &'a Path,
    pub(super) meta: &'a Path,
    pub(super) words: &'a [OsString],
}

impl IsolateRun<'_> {
    /// The arguments.
    ///
    /// # Errors
    /// That a rule cannot be said in isolate's words.
    pub(super) fn arguments(&self) -> Result<Vec<OsString>, IsolateError> {
        let valued = |option: IsolateOption, value: &OsStr| {
            GivenOption { option, value: Some(value.to_owned()) }.argument()
        };
        let mut arguments = vec![box_id(self.id)];
        let mut meta = OsString::from("--meta=");
        meta.push(self.meta);
        arguments.push(meta);
        let given = self.options.iter().filter(|given| given.option != IsolateOption::Quota);
        arguments.extend(given.map(GivenOption::argument));
        arguments.push("--no-default-dirs".into());
        for rule in root_rules(self.version, self.root, self.writable).iter().chain(self.dirs) {
            arguments.push(valued(IsolateOption::Dir, &rule.spelled()?));
        }
        for variable in self.variables {
            let mut text = variable.name().to_owned();
            match variable {
                // isolate cannot set a variable to nothing: it unsets it.
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

/// A rule's place as isolate has to see it: below the root, so behind the rule that mounts the root.
pub(super) fn respelled(rule: &DirRule, resolved: &Path) -> DirRule {
    let mut inside = OsString::from(".");
    for name in isolate::components(resolved.as_os_str()) {
        inside.push("/");
        inside.push(name);
    }
    DirRule { inside, ..rule.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(env: &[&str]) -> ImageConfig {
        let text = serde_json::json!({ "config": { "Env": env }, "rootfs": { "type": "layers" } });
        ImageConfig::parse(text.to_string().as_bytes()).unwrap()
    }

    fn option(option: IsolateOption, value: &str) -> GivenOption {
        GivenOption { option, value: (!value.is_empty()).then(|| value.into()) }
    }

    fn text(arguments: &[OsString]) -> String {
        arguments.join(OsStr::new("\n")).into_string().unwrap()
    }

    #[test]
    fn callers_variables_come_after_the_images() {
        let given = ["B=2", "C=", "HOME", "NOT_THERE", "EQUALS=a=b"].map(OsString::from);
        let config = image(&["PATH=/opt/bin", "A=1", "B=1", "C=1", "EMPTY=", "HOST_SECRET", "=x"]);
        let variables = environment(&config, &given).unwrap();
        let callers = [("HOME", "/root"), ("HOST_SECRET", "s"), ("A", "host")]
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let shown = |full| {
            let applied = apply(&variables, full, callers.clone().into_iter());
            let mut lines: Vec<String> = applied
                .into_iter()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect();
            lines.sort();
            lines.join(" ")
        };
        assert_eq!(shown(false), "A=1 B=2 EMPTY= EQUALS=a=b HOME=/root PATH=/opt/bin");
        assert_eq!(shown(true), "A=1 B=2 EMPTY= EQUALS=a=b HOME=/root HOST_SECRET=s PATH=/opt/bin");
        for wrong in ["", "=x"] {
            assert!(environment(&config, &[wrong.into()]).is_err(), "{wrong}");
        }
        assert!(environment(&image(&["A=\0"]), &[]).is_err());
    }

    #[test]
    fn init_and_cleanup_get_what_concerns_the_box() {
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
    fn run_has_the_root_first_and_the_callers_variables_last() {
        let rule = DirRule::parse(OsStr::new("data=/srv/data:rw")).unwrap();
        let dirs = [respelled(&rule, Path::new("/mnt/data"))];
        let options = [
            option(IsolateOption::Cg, ""),
            option(IsolateOption::Time, "1.5"),
            option(IsolateOption::Quota, "10,20"),
            option(IsolateOption::Processes, ""),
        ];
        let variables =
            environment(&image(&["A=1", "E="]), &["A=2".into(), "B".into(), "C=".into()]).unwrap();
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
            --dir=./dev/shm=tmpfs:rw:fs\n--dir=./proc=proc:fs\n\
            --dir=./proc/1=/run/rcx-imagefs/root/sys\n--dir=./tmp:tmp\n--dir=./mnt/data=/srv/data:rw\n\
            --env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n--env=A=1\n--env=E=\n--env=A=2\n\
            --env=B\n--env=C=\n--chdir=/box\n--run\n--\n/bin/sh\n-c\n--run";
        let arguments = text(&run.arguments().unwrap());
        // The order of a rule's flags means nothing.
        assert_eq!(arguments.replace("tmpfs:fs:rw", "tmpfs:rw:fs"), expected);
    }

    #[test]
    fn option_of_another_version_is_named_with_the_version() {
        let spec = |options: &[GivenOption]| RunSpec { options: options.to_vec(), ..RunSpec::default() };
        let error =
            spec(&[option(IsolateOption::Syscalls, "0")]).check(IsolateVersion::new(1, 10, 1)).unwrap_err();
        assert_eq!(error.to_string(), "option `--syscalls`: isolate 1.10.1 does not know it");
        spec(&[option(IsolateOption::Syscalls, "0")]).check(IsolateVersion::new(2, 6, 0)).unwrap();
        let error =
            spec(&[option(IsolateOption::CgMem, "1")]).check(IsolateVersion::new(2, 4, 0)).unwrap_err();
        assert_eq!(error.to_string(), "option `--cg-mem` needs `--cg`");
    }
}
