//! What a call asks for, and the call that isolate gets instead. No I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::{BoxImages, ImageName, ShimError};
use crate::sandbox::isolate::{
    DirRule, GivenOption, IsolateCall, IsolateError, IsolateMode, IsolateOption, IsolateVersion, RuleFlags,
    RuleTarget, components, is_root, root_rules,
};

/// The variable that names an image among the arguments: `--env=RCX_IMAGEFS_IMAGE=REF`.
pub(super) const IMAGE_VARIABLE: &str = "RCX_IMAGEFS_IMAGE";

/// Which image a call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageChoice {
    /// None: the call is isolate's alone.
    Untouched,
    /// The one that stands behind the mountpoint at this path.
    Image {
        /// The path below the mountpoint, without `..`.
        name: PathBuf,
        /// What a rule for the root said, where there is one.
        writable: Option<bool>,
    },
}

/// A call for an image, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRewrite {
    version: IsolateVersion,
    /// The options that stay.
    options: Vec<GivenOption>,
    /// The caller's rules for places that every root has.
    overriding: Vec<DirRule>,
    /// The caller's further rules, in their order.
    further: Vec<DirRule>,
    command: Vec<OsString>,
}

/// Finds the image of a call. `mountpoint` is asked for where the call may have to do with the mount.
///
/// A rule for the root goes first, whatever it says: with one that leads elsewhere, the call is isolate's. Then comes
/// the variable; with an empty value, the box has no image. Then the box's own.
pub fn choose(
    call: &IsolateCall,
    images: &BoxImages,
    mountpoint: impl FnOnce() -> Result<Option<PathBuf>, ShimError>,
) -> Result<ImageChoice, ShimError> {
    if call.mode != Some(IsolateMode::Run) {
        return Ok(ImageChoice::Untouched);
    }
    if let Some(rule) = root_rule(call) {
        let RuleTarget::Directory(outside) = rule.target else { return Ok(ImageChoice::Untouched) };
        let Some(mountpoint) = mountpoint()? else { return Ok(ImageChoice::Untouched) };
        return Ok(match below(Path::new(&outside), &mountpoint)? {
            Some(name) => ImageChoice::Image { name, writable: Some(rule.flags.rw) },
            None => ImageChoice::Untouched,
        });
    }
    let named = call.values(IsolateOption::Env).rev().find_map(image_variable);
    let image = match named {
        Some(text) if text.is_empty() => None,
        Some(text) => {
            let not_text = || ShimError::ImageName(text.to_string_lossy().into_owned());
            Some(text.to_str().ok_or_else(not_text)?.parse::<ImageName>()?)
        }
        None if images.is_empty() => None,
        None => {
            let given =
                || call.value(IsolateOption::BoxId).unwrap_or_default().to_string_lossy().into_owned();
            let id = call.box_id().ok_or_else(|| ShimError::BoxId(given()))?;
            images.of_box(id).cloned()
        }
    };
    Ok(match image {
        Some(image) => ImageChoice::Image { name: image.path().to_owned(), writable: None },
        None => ImageChoice::Untouched,
    })
}

/// Whether arguments that could not be read might still be for an image.
pub fn may_be_for_an_image(arguments: &[OsString], images: &BoxImages, mountpoint: Option<&Path>) -> bool {
    let holds = |argument: &OsString, text: &[u8]| {
        argument.as_bytes().windows(text.len()).any(|window| window == text)
    };
    let names = |argument: &OsString| {
        holds(argument, IMAGE_VARIABLE.as_bytes())
            || mountpoint.is_some_and(|path| holds(argument, path.as_os_str().as_bytes()))
    };
    !images.is_empty() || arguments.iter().any(names)
}

/// The value of the variable, where this is the value of an `--env` for it.
fn image_variable(pair: &OsStr) -> Option<&OsStr> {
    let value = pair.as_bytes().strip_prefix(IMAGE_VARIABLE.as_bytes())?.strip_prefix(b"=")?;
    Some(OsStr::from_bytes(value))
}

/// The rule for the box's root that is on top. Rules that isolate refuses are left to it.
fn root_rule(call: &IsolateCall) -> Option<DirRule> {
    let rules = rules(call.values(IsolateOption::Dir).filter_map(|text| DirRule::parse(text).ok()));
    rules.into_iter().rfind(|rule| is_root(&rule.inside) && rule.target != RuleTarget::Nothing)
}

/// The rules that count: a second one for the same text takes the first one's place.
fn rules(given: impl IntoIterator<Item = DirRule>) -> Vec<DirRule> {
    let mut rules: Vec<DirRule> = Vec::new();
    for rule in given {
        match rules.iter_mut().find(|former| former.inside == rule.inside) {
            Some(former) => *former = rule,
            None => rules.push(rule),
        }
    }
    rules
}

/// What stands behind the mountpoint in a path, compared as text: no link is followed, and nothing is asked of a filesystem.
fn below(path: &Path, mountpoint: &Path) -> Result<Option<PathBuf>, ShimError> {
    let Ok(rest) = path.strip_prefix(mountpoint) else { return Ok(None) };
    if rest.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(ShimError::Climbs(path.to_owned()));
    }
    if rest.as_os_str().is_empty() {
        return Err(ShimError::NotAnImage(path.to_owned()));
    }
    Ok(Some(rest.components().collect()))
}

impl CallRewrite {
    /// Takes a call for an image apart, for the isolate that it will be given to.
    pub fn new(call: &IsolateCall, version: IsolateVersion) -> Result<Self, ShimError> {
        let given: Result<Vec<DirRule>, _> = call.values(IsolateOption::Dir).map(DirRule::parse).collect();
        let places = root_rules(version, Path::new("/"), false);
        let (mut overriding, mut further) = (Vec::new(), Vec::new());
        for rule in rules(given?) {
            if is_root(&rule.inside) || is_hosts_etc(&rule) {
                continue;
            }
            if places.iter().any(|place| is_same_place(place, &rule)) {
                overriding.push(rule);
            } else if rule.target != RuleTarget::Nothing {
                further.push(rule);
            }
        }
        let stays = |given: &&GivenOption| match given.option {
            IsolateOption::Dir | IsolateOption::NoDefaultDirs => false,
            IsolateOption::Env => given.value.as_deref().and_then(image_variable).is_none(),
            // What it asks for is what newer versions do always.
            IsolateOption::CgTiming => given.option.is_known_to(version),
            _ => true,
        };
        let options = call.options.iter().filter(stays).cloned().collect();
        Ok(Self { version, options, overriding, further, command: call.arguments.clone() })
    }

    /// The rules for places that every root has, behind the one for the root itself.
    pub fn standard(&self, root: &Path) -> Vec<DirRule> {
        let mut standard = root_rules(self.version, root, false);
        standard.retain(|rule| !is_root(&rule.inside));
        let stands = |standard: &[DirRule], inside: &str| {
            let own = root_rules(self.version, root, false);
            own.iter().filter(|rule| rule.inside == inside).all(|rule| {
                standard.iter().any(|other| other.inside == inside && other.target == rule.target)
            })
        };
        for rule in &self.overriding {
            if let Some(former) = standard.iter_mut().find(|former| is_same_place(former, rule)) {
                *former = DirRule { inside: former.inside.clone(), ..rule.clone() };
            }
        }
        // These lie in others, and mean nothing in what the caller has put there.
        for (inside, outer) in [("./dev/shm", "./dev"), ("./proc/1", "./proc")] {
            if stands(&standard, inside) && !stands(&standard, outer) {
                standard.retain(|rule| rule.inside != inside);
            }
        }
        standard.retain(|rule| rule.target != RuleTarget::Nothing);
        standard
    }

    /// The caller's rules beside those that every root has: each needs a mount point.
    pub fn further(&self) -> &[DirRule] {
        &self.further
    }

    /// The command's first word, which isolate takes as a path.
    pub fn program(&self) -> Option<&OsStr> {
        self.command.first().map(OsString::as_os_str)
    }

    /// The arguments for isolate. `root` is attached where the rule says; `further` are the caller's rules with the places
    /// that were made for them; `environment` are the image's `NAME=VALUE` pairs, which go before all others by coming
    /// last; `program` replaces the command's first word.
    pub fn arguments(
        &self,
        root: &Path,
        writable: bool,
        further: &[DirRule],
        environment: &[String],
        program: Option<&Path>,
    ) -> Result<Vec<OsString>, IsolateError> {
        let mut arguments: Vec<OsString> = self.options.iter().map(GivenOption::argument).collect();
        let mut add =
            |option, value: OsString| arguments.push(GivenOption { option, value: Some(value) }.argument());
        // Without `dev`: device nodes of an image never work.
        let top = DirRule::directory(".", root, RuleFlags { rw: writable, ..RuleFlags::default() });
        for rule in std::iter::once(&top).chain(&self.standard(root)).chain(further) {
            add(IsolateOption::Dir, rule.to_value()?);
        }
        for pair in environment.iter().filter(|pair| is_pair(pair)) {
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

    /// Where programs are searched for: what isolate will set last.
    pub fn search_path(&self, environment: &[String]) -> Option<OsString> {
        let of_image = environment.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
        let given = || {
            let values = self.options.iter().rev().filter(|given| given.option == IsolateOption::Env);
            let path = |given: &GivenOption| {
                given.value.as_ref()?.as_bytes().strip_prefix(b"PATH=").map(<[u8]>::to_vec)
            };
            values.filter_map(path).next()
        };
        of_image.map(OsString::from).or_else(|| given().map(|path| OsStr::from_bytes(&path).to_owned()))
    }
}

fn is_same_place(one: &DirRule, other: &DirRule) -> bool {
    components(&one.inside).eq(components(&other.inside))
}

/// The host's `/etc`, as workers bind it for programs of the host. An image has its own.
fn is_hosts_etc(rule: &DirRule) -> bool {
    let RuleTarget::Directory(outside) = &rule.target else { return false };
    let etc = |path: &OsStr| {
        let parts: Vec<&OsStr> = components(path).collect();
        parts == ["etc"] || parts == ["etc", "alternatives"]
    };
    outside.as_bytes().starts_with(b"/") && etc(&rule.inside) && etc(outside)
}

/// Whether isolate sets a variable by this. Without `=`, it would pass on that of its caller.
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

    fn images(pairs: &[(&'static str, &'static str)]) -> BoxImages {
        BoxImages::new(pairs.iter().copied()).unwrap()
    }

    /// The image that a call is for, `+` behind it where the root is to be writable; `-` for none, `!` for an error.
    fn chosen(line: &str, images: &BoxImages) -> String {
        match choose(&call(line), images, || Ok(Some("/images".into()))) {
            Ok(ImageChoice::Untouched) => "-".to_owned(),
            Ok(ImageChoice::Image { name, writable }) => {
                format!("{}{}", name.display(), if writable == Some(true) { "+" } else { "" })
            }
            Err(_) => "!".to_owned(),
        }
    }

    #[test]
    fn image_is_chosen_by_rule_then_variable_then_box() {
        let none = BoxImages::default();
        for (line, expected) in [
            ("--run -- a", "-"),
            ("--dir=.=/images/lab/x@sha256-ab --run -- a", "lab/x@sha256-ab"),
            ("-d /./=/images//lab/./x:rw:dev --run -- a", "lab/x+"),
            ("--dir=.=/images/a --dir=.=/images/b --run -- a", "b"),
            ("--dir=.=/images/a --dir=./=/images/b --dir=.=/images/c --run -- a", "b"),
            ("--dir=.=/images/a --dir=.= --run -- a", "-"),
            ("--dir=.=/images/a --init", "-"),
            ("--dir=.=/images/a --cleanup", "-"),
            ("--dir=.=/images/a", "-"),
            ("--dir=.=/srv/root --run -- a", "-"),
            ("--dir=.=/imagesx/a --run -- a", "-"),
            ("--dir=.=./images/a --run -- a", "-"),
            ("--dir=.=/srv/../images/a --run -- a", "-"),
            ("--dir=.=tmpfs:fs --run -- a", "-"),
            ("--dir=.=/images/../etc --run -- a", "!"),
            ("--dir=.=/images/a/../b --run -- a", "!"),
            ("--dir=.=/images --run -- a", "!"),
            ("--dir=.=/images/ --run -- a", "!"),
            ("--dir=mnt=/images/a --run -- a", "-"),
            ("--env=RCX_IMAGEFS_IMAGE=x --run -- a", "x:latest"),
            ("-E RCX_IMAGEFS_IMAGE=x:1 --env=RCX_IMAGEFS_IMAGE=y:1@sha256:ab --run -- a", "y@sha256:ab"),
            ("--env=RCX_IMAGEFS_IMAGE=../x --run -- a", "!"),
            ("--env=RCX_IMAGEFS_IMAGE --run -- a", "-"),
            ("--env=RCX_IMAGEFS_IMAGES=x --run -- a", "-"),
            ("--run -- a --env=RCX_IMAGEFS_IMAGE=x", "-"),
            ("--env=RCX_IMAGEFS_IMAGE=x --dir=.=/images/b --run -- a", "b"),
            ("--env=RCX_IMAGEFS_IMAGE=x --dir=.=/srv/root --run -- a", "-"),
        ] {
            assert_eq!(chosen(line, &none), expected, "{line}");
        }
        let boxes = images(&[("default", "d"), ("7", "s:1"), ("8", "")]);
        for (line, expected) in [
            ("--run -- a", "d:latest"),
            ("--box-id=7 --run -- a", "s:1"),
            ("-b 8 --run -- a", "-"),
            ("-b 7 -b 9 --run -- a", "d:latest"),
            ("-b 7 --init", "-"),
            ("-b x --run -- a", "!"),
            ("-b 7 --env=RCX_IMAGEFS_IMAGE=x --run -- a", "x:latest"),
            ("-b 7 --env=RCX_IMAGEFS_IMAGE= --run -- a", "-"),
        ] {
            assert_eq!(chosen(line, &boxes), expected, "{line}");
        }
    }

    #[test]
    fn mount_is_not_asked_for_unless_a_rule_is_about_the_root() {
        let never = || -> Result<Option<PathBuf>, ShimError> { panic!("asked for the mountpoint") };
        for line in ["--run -- a", "--init", "--dir=x=/images/a --run -- a", "--dir=.= --run -- a"] {
            assert_eq!(
                choose(&call(line), &BoxImages::default(), never).unwrap(),
                ImageChoice::Untouched,
                "{line}"
            );
        }
        let nowhere = choose(&call("--dir=.=/images/a --run -- a"), &BoxImages::default(), || Ok(None));
        assert_eq!(nowhere.unwrap(), ImageChoice::Untouched);
    }

    #[test]
    fn arguments_that_are_not_understood_are_isolates_only_without_images() {
        let may = |line: &str, images: &BoxImages| {
            may_be_for_an_image(&words(line), images, Some(Path::new("/images")))
        };
        let none = BoxImages::default();
        assert!(!may("--new-option --run -- a", &none));
        assert!(may("--new-option --dir=.=/images/a --run", &none));
        assert!(may("--new-option --env=RCX_IMAGEFS_IMAGE=a --run", &none));
        assert!(may("--new-option --run -- a", &images(&[("7", "a")])));
    }

    /// The call that isolate gets, without what every call has.
    fn rewritten(line: &str, version: IsolateVersion, environment: &[&str]) -> String {
        let environment: Vec<String> = environment.iter().map(|pair| (*pair).to_owned()).collect();
        let plan = CallRewrite::new(&call(line), version).unwrap();
        let further = plan.further().to_vec();
        let root = Path::new("/run/r");
        let arguments = plan.arguments(root, false, &further, &environment, None).unwrap();
        let text = arguments.join(OsStr::new(" ")).into_string().unwrap();
        let standard = plan.standard(root).iter().map(|rule| format!("--dir={rule} ")).collect::<String>();
        assert!(text.contains(&standard), "{text}");
        text.replace(&standard, "").replace("--dir=.=/run/r ", "R ").replace("--no-default-dirs ", "")
    }

    #[test]
    fn workers_call_is_rewritten() {
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
    fn rules_for_standard_places_go_before_the_standard_ones() {
        let standard = |line: &str| {
            let plan = CallRewrite::new(&call(&format!("{line} --run -- a")), V2).unwrap();
            let rules = plan.standard(Path::new("/r"));
            (rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), plan.further().len())
        };
        let tmp = "./tmp:tmp";
        let (dev, shm) = ("./dev=/dev:dev:norec", "./dev/shm=tmpfs:fs:rw");
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
    fn hosts_etc_is_left_out_and_nothing_else() {
        let further = |line: &str| {
            let plan = CallRewrite::new(&call(&format!("{line} --run -- a")), V2).unwrap();
            plan.further().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
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
            assert_eq!(further(line), expected, "{line}");
        }
        assert!(CallRewrite::new(&call("--dir=a/../b=/x --run -- a"), V2).is_err());
    }

    #[test]
    fn root_is_given_as_asked_and_never_with_device_nodes() {
        let plan = CallRewrite::new(&call("--dir=.=/images/x:dev:noexec --run -- prog -x"), V2).unwrap();
        let arguments = |writable, program| {
            let arguments = plan.arguments(Path::new("/r"), writable, &[], &[], program).unwrap();
            arguments.join(OsStr::new(" ")).into_string().unwrap()
        };
        assert!(arguments(false, None).contains(" --dir=.=/r --dir=./box"));
        assert!(arguments(true, None).contains(" --dir=.=/r:rw --dir=./box"));
        assert!(arguments(false, Some(Path::new("/bin/prog"))).ends_with(" -- /bin/prog -x"));
        let bare = CallRewrite::new(&call("--run"), V2).unwrap();
        let bare = bare.arguments(Path::new("/r"), false, &[], &[], Some(Path::new("/x"))).unwrap();
        assert_eq!(bare.last().unwrap(), "--", "no command is made up");
    }

    #[test]
    fn programs_are_searched_for_in_the_path_that_is_set_last() {
        let plan = CallRewrite::new(&call("--env=PATH=/a --env=PATH=/b --run -- x"), V2).unwrap();
        assert_eq!(plan.search_path(&["PATH=/c".to_owned(), "X=1".to_owned()]), Some("/c".into()));
        assert_eq!(plan.search_path(&[]), Some("/b".into()));
        assert_eq!(CallRewrite::new(&call("--run -- x"), V2).unwrap().search_path(&[]), None);
    }
}
