//! Rewrites a call for a root. No I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::choice::image_variable;
use crate::sandbox::isolate::{
    DirRule, GivenOption, IsolateCall, IsolateError, IsolateOption, IsolateVersion, RuleFlags, RuleTarget,
    components, is_root, root_rules,
};

/// A call that requests an image, divided into the parts of the call for a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRewrite {
    version: IsolateVersion,
    /// The options that isolate receives unchanged.
    options: Vec<GivenOption>,
    /// The caller's rules for paths that have a rule in every root.
    overriding: Vec<DirRule>,
    /// The caller's other rules, in their order.
    additional: Vec<DirRule>,
    command: Vec<OsString>,
}

/// Parses a rule. Unlike isolate, this also accepts `/` for the root, which isolate calls `.`.
pub(super) fn parse_rule(text: &OsStr) -> Result<DirRule, IsolateError> {
    let slashes = text.as_bytes().iter().take_while(|byte| **byte == b'/').count();
    match text.as_bytes().split_at(slashes) {
        ([_, ..], rest @ [b'=', ..]) => DirRule::parse(OsStr::from_bytes(&[b".", rest].concat())),
        _ => DirRule::parse(text),
    }
}

/// Returns the rules that take effect: a later rule for the same text replaces the earlier one in its position.
fn effective_rules(all: impl IntoIterator<Item = DirRule>) -> Vec<DirRule> {
    let mut rules: Vec<DirRule> = Vec::new();
    for rule in all {
        match rules.iter_mut().find(|earlier| earlier.inside == rule.inside) {
            Some(earlier) => *earlier = rule,
            None => rules.push(rule),
        }
    }
    rules
}

impl CallRewrite {
    /// Divides a call that requests an image. `version` is the version of the isolate that will receive the call.
    ///
    /// # Errors
    /// [`IsolateError::Rule`] if a directory rule is malformed.
    pub fn new(call: &IsolateCall, version: IsolateVersion) -> Result<Self, IsolateError> {
        let given: Result<Vec<DirRule>, _> = call.values(IsolateOption::Dir).map(parse_rule).collect();
        let standard = root_rules(version, Path::new("/"), false);
        let (mut overriding, mut additional) = (Vec::new(), Vec::new());
        for rule in effective_rules(given?) {
            if is_root(&rule.inside) || is_hosts_etc(&rule) {
                continue;
            }
            if standard.iter().any(|standard| has_same_path(standard, &rule)) {
                overriding.push(rule);
            } else if rule.target != RuleTarget::Nothing {
                additional.push(rule);
            }
        }
        let is_kept = |entry: &&GivenOption| match entry.option {
            IsolateOption::Dir | IsolateOption::NoDefaultDirs => false,
            IsolateOption::Env => entry.value.as_deref().and_then(image_variable).is_none(),
            // Versions without this option always behave as with it.
            IsolateOption::CgTiming => entry.option.is_known_to(version),
            _ => true,
        };
        let options = call.options.iter().filter(is_kept).cloned().collect();
        Ok(Self { version, options, overriding, additional, command: call.arguments.clone() })
    }

    /// Returns the rules that every root has, except the rule for the root itself, with the caller's replacements.
    pub fn standard_rules(&self, root: &Path) -> Vec<DirRule> {
        let mut standard = root_rules(self.version, root, false);
        standard.retain(|rule| !is_root(&rule.inside));
        let is_unchanged = |standard: &[DirRule], inside: &str| {
            let own = root_rules(self.version, root, false);
            own.iter().filter(|rule| rule.inside == inside).all(|rule| {
                standard.iter().any(|other| other.inside == inside && other.target == rule.target)
            })
        };
        for rule in &self.overriding {
            if let Some(replaced) = standard.iter_mut().find(|standard| has_same_path(standard, rule)) {
                *replaced = DirRule { inside: replaced.inside.clone(), ..rule.clone() };
            }
        }
        // A standard rule inside a directory that the caller replaces is omitted.
        for (inside, outer) in [("./dev/shm", "./dev"), ("./dev/pts", "./dev"), ("./proc/1", "./proc")] {
            if is_unchanged(&standard, inside) && !is_unchanged(&standard, outer) {
                standard.retain(|rule| rule.inside != inside);
            }
        }
        standard.retain(|rule| rule.target != RuleTarget::Nothing);
        standard
    }

    /// Returns the caller's rules for paths without a standard rule. Each needs a mount point.
    pub fn additional_rules(&self) -> &[DirRule] {
        &self.additional
    }

    /// Returns the first word of the command, which isolate interprets as a path.
    pub fn program(&self) -> Option<&OsStr> {
        self.command.first().map(OsString::as_os_str)
    }

    /// Returns the arguments for isolate.
    ///
    /// `root` is the mounted root. `additional` are the caller's rules with resolved paths. `environment` are the pairs that
    /// [`CallRewrite::environment`] returns. `program` replaces the first word of the command.
    ///
    /// # Errors
    /// [`IsolateError::Rule`] if a path cannot be written as a rule.
    pub fn arguments(
        &self,
        root: &Path,
        writable: bool,
        additional: &[DirRule],
        environment: &[String],
        program: Option<&Path>,
    ) -> Result<Vec<OsString>, IsolateError> {
        let mut arguments: Vec<OsString> = self.options.iter().map(GivenOption::argument).collect();
        let mut add =
            |option, value: OsString| arguments.push(GivenOption { option, value: Some(value) }.argument());
        // The root never has the flag `dev`: device nodes of an image must not be usable.
        let top = DirRule::directory(".", root, RuleFlags { rw: writable, ..RuleFlags::default() });
        for rule in std::iter::once(&top).chain(&self.standard_rules(root)).chain(additional) {
            add(IsolateOption::Dir, rule.to_value()?);
        }
        for pair in environment {
            add(IsolateOption::Env, pair.into());
        }
        arguments.push(GivenOption { option: IsolateOption::NoDefaultDirs, value: None }.argument());
        arguments.push("--".into());
        let mut command = self.command.iter();
        if let (Some(program), Some(_)) = (program, command.clone().next()) {
            command.next();
            arguments.push(program.into());
        }
        arguments.extend(command.cloned());
        Ok(arguments)
    }

    /// Returns the `NAME=VALUE` pairs that the program gets besides the caller's: the image's, and `HOME` from `home` if neither
    /// the image nor the caller sets it.
    ///
    /// A pair is omitted if the caller sets its variable, unless the variable is one of `from_image`. The pairs come after the
    /// caller's, so those override them.
    pub fn environment(&self, image: &[String], from_image: &[String], home: Option<&str>) -> Vec<String> {
        let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
        let is_own = |pair: &&String| {
            let name = name(pair);
            from_image.contains(&name) || !self.sets(&name)
        };
        let mut pairs: Vec<String> =
            image.iter().filter(|pair| is_pair(pair)).filter(is_own).cloned().collect();
        let is_set = self.sets("HOME") || pairs.iter().any(|pair| name(pair) == "HOME");
        pairs.extend(home.filter(|_| !is_set).map(|home| format!("HOME={home}")));
        pairs
    }

    /// Returns whether an option `--env` of the caller sets, removes or inherits a variable.
    fn sets(&self, name: &str) -> bool {
        let given = self.options.iter().filter(|given| given.option == IsolateOption::Env);
        let mut names =
            given.filter_map(|given| given.value.as_ref()?.as_bytes().split(|byte| *byte == b'=').next());
        names.any(|given| given == name.as_bytes())
    }

    /// The directory that the program starts in, as a path in the root.
    pub fn directory(&self) -> PathBuf {
        let chdir = self.options.iter().rfind(|given| given.option == IsolateOption::Chdir);
        Path::new("/box").join(chdir.and_then(|given| given.value.as_deref()).unwrap_or_default())
    }

    /// Returns the `PATH` that the program will have, if the image or the caller sets one.
    pub fn search_path(&self, environment: &[String]) -> Option<OsString> {
        let of_image = environment.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
        let of_caller = || {
            let values = self.options.iter().rev().filter(|entry| entry.option == IsolateOption::Env);
            let path = |entry: &GivenOption| {
                entry.value.as_ref()?.as_bytes().strip_prefix(b"PATH=").map(<[u8]>::to_vec)
            };
            values.filter_map(path).next()
        };
        of_image.map(OsString::from).or_else(|| of_caller().map(|path| OsStr::from_bytes(&path).to_owned()))
    }
}

fn has_same_path(one: &DirRule, other: &DirRule) -> bool {
    components(&one.inside).eq(components(&other.inside))
}

/// Returns whether a rule binds the host's `/etc`, as workers do for programs of the host. An image has its own `/etc`.
fn is_hosts_etc(rule: &DirRule) -> bool {
    let RuleTarget::Directory(outside) = &rule.target else { return false };
    let etc = |path: &OsStr| {
        let parts: Vec<&OsStr> = components(path).collect();
        parts == ["etc"] || parts == ["etc", "alternatives"]
    };
    outside.as_bytes().starts_with(b"/") && etc(&rule.inside) && etc(outside)
}

/// Returns whether `pair` sets a variable. For an entry without `=`, isolate would pass on the caller's variable.
fn is_pair(pair: &str) -> bool {
    pair.find('=').is_some_and(|at| at > 0) && !pair.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: IsolateVersion = IsolateVersion::new(2, 6, 0);
    const V1: IsolateVersion = IsolateVersion::new(1, 10, 1);

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect()
    }

    fn call(line: &str) -> IsolateCall {
        IsolateCall::parse(&words(line), None, false).unwrap()
    }

    /// Returns the call that isolate receives, without the parts that every call has.
    fn rewritten(line: &str, version: IsolateVersion, environment: &[&str]) -> String {
        let environment: Vec<String> = environment.iter().map(|pair| (*pair).to_owned()).collect();
        let rewrite = CallRewrite::new(&call(line), version).unwrap();
        let additional = rewrite.additional_rules().to_vec();
        let root = Path::new("/run/r");
        let environment = rewrite.environment(&environment, &["PATH".to_owned()], None);
        let arguments = rewrite.arguments(root, false, &additional, &environment, None).unwrap();
        let text = arguments.join(OsStr::new(" ")).into_string().unwrap();
        let standard =
            rewrite.standard_rules(root).iter().map(|rule| format!("--dir={rule} ")).collect::<String>();
        assert!(text.contains(&standard), "{text}");
        text.replace(&standard, "").replace("--dir=.=/run/r ", "R ").replace("--no-default-dirs ", "")
    }

    #[test]
    fn call_of_a_worker_is_rewritten() {
        let line = "--cg --cg-timing --box-id=3 --cg-mem=65536 --time=1 --wall-time=2 --extra-time=1 --stack=9 \
            --stderr-to-stdout --chdir=../box --processes --share-net --dir=/etc --env=PATH=/usr/bin \
            --env=RCX_IMAGEFS_IMAGE=x --dir=in=/srv/in:rw:maybe --dir=etc/alternatives=/etc/alternatives:maybe \
            --meta=/tmp/m --run -- cc a.c -o a";
        let expected = |timing: &str| {
            format!(
                "--cg {timing}--box-id=3 --cg-mem=65536 --time=1 --wall-time=2 --extra-time=1 --stack=9 \
                 --stderr-to-stdout --chdir=../box --processes --share-net --env=PATH=/usr/bin --meta=/tmp/m --run R \
                 --dir=in=/srv/in:rw:maybe --env=PATH=/bin --env=LANG=C -- cc a.c -o a"
            )
        };
        let environment = ["PATH=/bin", "LANG=C", "INHERITED", "=x", "NUL=\0"];
        assert_eq!(rewritten(line, V2, &environment), expected(""));
        assert_eq!(rewritten(line, V1, &environment), expected("--cg-timing "));
    }

    #[test]
    fn rules_of_the_caller_replace_standard_ones_for_the_same_path() {
        let standard = |line: &str| {
            let rewrite = CallRewrite::new(&call(&format!("{line} --run -- a")), V2).unwrap();
            let rules = rewrite.standard_rules(Path::new("/r"));
            (
                rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                rewrite.additional_rules().len(),
            )
        };
        let tmp = "./tmp:tmp";
        let (dev, shm) = ("./dev=/dev:dev:norec", "./dev/shm=tmpfs:fs:rw ./dev/pts=/dev/pts:rw:maybe:dev");
        let proc = "./proc=proc:fs ./proc/1=/r/sys";
        for (line, expected) in [
            ("", format!("./box=./box:rw {dev} {shm} {proc} {tmp}")),
            ("--dir=tmp=/srv/t:rw", format!("./box=./box:rw {dev} {shm} {proc} ./tmp=/srv/t:rw")),
            ("--dir=./tmp=", format!("./box=./box:rw {dev} {shm} {proc}")),
            ("--dir=/dev", format!("./box=./box:rw ./dev=/dev {shm} {proc} {tmp}")),
            ("--dir=dev=", format!("./box=./box:rw {proc} {tmp}")),
            ("--dir=dev=/srv/d", format!("./box=./box:rw ./dev=/srv/d {proc} {tmp}")),
            ("--dir=dev=/srv/d --dir=dev/shm=/srv/s", {
                format!("./box=./box:rw ./dev=/srv/d ./dev/shm=/srv/s {proc} {tmp}")
            }),
            ("--dir=proc= -d box=./box", format!("./box=./box {dev} {shm} {tmp}")),
            ("-D --dir=.=/x --dir=./box=./box:rw", format!("./box=./box:rw {dev} {shm} {proc} {tmp}")),
        ] {
            assert_eq!(standard(line), (expected, 0), "{line}");
        }
    }

    #[test]
    fn only_rules_for_the_etc_of_the_host_are_dropped() {
        let additional = |line: &str| {
            let rewrite = CallRewrite::new(&call(&format!("{line} --run -- a")), V2).unwrap();
            rewrite.additional_rules().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        for (line, expected) in [
            ("--dir=/etc", ""),
            ("--dir=etc/alternatives=/etc/alternatives:maybe", ""),
            ("--dir=./etc=/etc/:rw", ""),
            ("--dir=etc=/srv/etc", "etc=/srv/etc"),
            ("--dir=etc/ssl=/etc/ssl", "etc/ssl=/etc/ssl"),
            ("--dir=mnt=/etc", "mnt=/etc"),
            ("--dir=etc=./etc", "etc=./etc"),
            ("--dir=b=/b --dir=a=/a --dir=b=/c:rw", "b=/c:rw a=/a"),
            ("--dir=a=/a --dir=a=", ""),
            ("--dir=s=sysfs:fs --dir=t:tmp", "s=sysfs:fs t:tmp"),
        ] {
            assert_eq!(additional(line), expected, "{line}");
        }
        assert!(CallRewrite::new(&call("--dir=a/../b=/x --run -- a"), V2).is_err());
    }

    #[test]
    fn variables_of_the_caller_override_those_of_the_image_but_for_the_path() {
        let environment = |line: &str, from_image: &[&str], home| {
            let rewrite = CallRewrite::new(&call(&format!("{line} --run -- a")), V2).unwrap();
            let image = ["PATH=/i", "TMPDIR=/t", "LANG=C", "HOMES=x", "=y", "Z"].map(str::to_owned);
            let from_image: Vec<String> = from_image.iter().map(|name| (*name).to_owned()).collect();
            rewrite.environment(&image, &from_image, home).join(" ")
        };
        let line = "--env=LANG=cs -E TMPDIR --env=PATH=/usr/bin";
        assert_eq!(environment(line, &["PATH"], None), "PATH=/i HOMES=x");
        assert_eq!(environment(line, &[], None), "HOMES=x");
        assert_eq!(environment(line, &["LANG", "PATH", "W"], None), "PATH=/i LANG=C HOMES=x");
        assert_eq!(environment("--env=HOMES=", &[], Some("/box")), "PATH=/i TMPDIR=/t LANG=C HOME=/box");
        let all = "PATH=/i TMPDIR=/t LANG=C HOMES=x";
        assert_eq!(environment("", &["PATH"], Some("/box")), format!("{all} HOME=/box"));
        for line in ["--env=HOME=/x", "-E HOME", "--env=HOME="] {
            assert_eq!(environment(line, &["PATH"], Some("/box")), all, "{line}");
        }
        let rewrite = CallRewrite::new(&call("--run -- a"), V2).unwrap();
        assert_eq!(rewrite.environment(&["HOME=/root".to_owned()], &[], Some("/box")), ["HOME=/root"]);
    }

    #[test]
    fn root_may_be_spelled_as_a_slash() {
        for (text, expected) in
            [("/=/images/x", ".=/images/x"), ("//=/x:rw", ".=/x:rw"), ("/a=/x", "a=/x"), ("/=", ".=")]
        {
            assert_eq!(parse_rule(OsStr::new(text)).unwrap().to_string(), expected, "{text}");
        }
        assert!(parse_rule(OsStr::new("/")).is_err() && parse_rule(OsStr::new("=/x")).is_err());
        assert_eq!(rewritten("--dir=/=/images/x --run -- a", V2, &[]), "--run R -- a");
    }

    #[test]
    fn program_starts_in_the_box_or_where_the_caller_says() {
        let directory = |line: &str| CallRewrite::new(&call(line), V2).unwrap().directory();
        assert_eq!(directory("--run -- a"), Path::new("/box"));
        assert_eq!(directory("--chdir=../box --chdir=x --run -- a"), Path::new("/box/x"));
        assert_eq!(directory("--chdir=/opt --run -- a"), Path::new("/opt"));
    }

    #[test]
    fn root_is_writable_only_on_request_and_never_allows_devices() {
        let rewrite = CallRewrite::new(&call("--dir=.=/images/x:dev:noexec --run -- prog -x"), V2).unwrap();
        let arguments = |writable, program| {
            let arguments = rewrite.arguments(Path::new("/r"), writable, &[], &[], program).unwrap();
            arguments.join(OsStr::new(" ")).into_string().unwrap()
        };
        assert!(arguments(false, None).contains(" --dir=.=/r --dir=./box"));
        assert!(arguments(true, None).contains(" --dir=.=/r:rw --dir=./box"));
        assert!(arguments(false, Some(Path::new("/bin/prog"))).ends_with(" -- /bin/prog -x"));
        let bare = CallRewrite::new(&call("--run"), V2).unwrap();
        let bare = bare.arguments(Path::new("/r"), false, &[], &[], Some(Path::new("/x"))).unwrap();
        assert_eq!(bare.last().unwrap(), "--", "no command is added");
    }

    #[test]
    fn search_path_is_the_path_variable_that_is_set_last() {
        let rewrite = CallRewrite::new(&call("--env=PATH=/a --env=PATH=/b --run -- x"), V2).unwrap();
        assert_eq!(rewrite.search_path(&["PATH=/c".to_owned(), "X=1".to_owned()]), Some("/c".into()));
        assert_eq!(rewrite.search_path(&[]), Some("/b".into()));
        assert_eq!(CallRewrite::new(&call("--run -- x"), V2).unwrap().search_path(&[]), None);
    }
}
