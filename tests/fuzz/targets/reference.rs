//! Text from users and documents: references, names, tags, digests, platforms, media types, and paths of tar members.
//!
//! Properties: canonical text parses as the same value; a path in the mount has no `..` or empty component; member paths
//! equal the normal form of the reference model, and parse as themselves.

use rcx_imagefs::image::{Digest, LayerMedia, Name, Platform, Reference, ReferenceError, Tag};
use rcx_imagefs::layer::{LayerPath, MemberName, NameError};
use rcx_imagefs::sandbox::shim::{BoxImages, ImageName};

use crate::input::Input;
use support::model;

const WORDS: [&str; 32] = [
    "docker.io",
    "index.docker.io",
    "library",
    "localhost",
    "reg.example",
    "[::1]",
    "10.0.0.1",
    "lab",
    "python",
    "a",
    "A",
    "/",
    "/",
    "/",
    ":",
    ":",
    "@",
    "..",
    ".",
    "-",
    "_",
    "__",
    "5000",
    "3.12",
    "latest",
    "sha256:",
    "sha256-",
    "sha512:",
    "https://",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "linux/arm64",
    "v8",
];

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    if choice.is_multiple_of(4) {
        return check_member(input.rest());
    }
    let text = match choice % 4 {
        1 => String::from_utf8_lossy(input.rest()).into_owned(),
        _ => {
            let mut text = String::new();
            while !input.is_empty() && text.len() < 600 {
                match input.below(12) {
                    0 => text += &String::from_utf8_lossy(input.bytes(3)),
                    1 => text += &input.pick(&WORDS).repeat(1 + input.below(70)),
                    _ => text += input.pick(&WORDS),
                }
            }
            text
        }
    };
    for default in [None, Some("reg.example"), Some("docker.io"), Some("reg:5000")] {
        check_reference(&text, default);
    }
    let _ = Reference::parse("a", Some(&text)).map(|reference| check_name(&reference.name));
    check_text(&text);
}

fn check_reference(text: &str, default: Option<&str>) {
    let parsed = Reference::parse(text, default);
    if let Ok(reference) = &parsed {
        let canonical = reference.to_string();
        // Canonical text includes the host, so that the default does not apply.
        assert_eq!(
            Reference::parse(&canonical, Some("other.example")).as_ref(),
            Ok(reference),
            "{canonical}"
        );
        check_name(&reference.name);
        assert!(reference.name.host().is_some(), "{canonical}");
        let tag = reference.tag_or_latest();
        assert_eq!(tag.as_str().parse::<Tag>().as_ref(), Ok(&tag));
    }
    if let Ok(given) = Reference::from_archive(text) {
        check_name(&given.name);
        assert_eq!(Reference::from_archive(&given.to_string()), Ok(given));
    }
    if let Ok(meanings) = Reference::candidates(text, default) {
        if let Ok(first) = &parsed {
            assert_eq!(meanings.first(), Some(first), "the reference in the default registry is not first");
        }
        assert!((1..=3).contains(&meanings.len()));
    }
}

fn check_name(name: &Name) {
    assert_eq!(name.as_str().parse::<Name>().as_ref(), Ok(name));
    assert_eq!(serde_json::from_value::<Name>(serde_json::to_value(name).unwrap()).unwrap(), *name);
    assert!(name.as_str().len() <= 255);
    for default in [None, Some("reg.example"), name.host()] {
        let familiar = name.familiar(default);
        match Reference::candidates(&familiar, default) {
            Ok(meanings) => {
                assert!(
                    meanings.iter().any(|meaning| meaning.name == *name),
                    "{familiar} does not mean {name:?}"
                )
            }
            // A name that looks like an image ID needs a host or a tag.
            Err(error) => assert!(matches!(error, ReferenceError::ImageId(_)), "{familiar}: {error}"),
        }
        for component in familiar.split('/') {
            assert!(!matches!(component, "" | "." | ".."), "{name:?} escapes the mount");
            assert!(component.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
        }
    }
}

fn check_text(text: &str) {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().as_ref(), Ok(&platform), "{text}");
        assert_eq!(platform.choose([&platform]), Some(0));
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert!(tag.as_str() == text && text.len() <= 128 && !text.contains(['/', ':', '@']));
    }
    if let Some(media) = LayerMedia::parse(text) {
        // Vendors' types of layers declare a tar; other types may be anything.
        let is_vendors = text.starts_with("application/vnd.");
        assert!(!is_vendors || (text.contains("tar") && !text.contains("encrypted")), "{text}: {media:?}");
    }
    if let Ok(image) = text.parse::<ImageName>() {
        let normal = |part| matches!(part, std::path::Component::Normal(_));
        assert!(image.path().components().all(normal), "{text:?} escapes the mount");
        assert!(!image.path().as_os_str().is_empty() && !image.to_string().contains('\0'));
    }
    if let Ok(images) = BoxImages::new([(text, "a"), ("10-19", "")]) {
        assert!(images.of_box(15).is_none() || text == "default" && images.of_box(15).is_none());
    }
}

fn check_member(raw: &[u8]) {
    let path = LayerPath::parse(raw);
    if let Ok(path) = &path {
        assert_eq!(model::normal(raw).join(&b'/'), path.as_bytes(), "the model computes a different path");
        if !path.is_root() {
            assert_eq!(LayerPath::parse(path.as_bytes()).as_ref(), Ok(path));
        }
        let joined = [path.parent(), path.file_name()].join(&b'/');
        assert_eq!(joined.strip_prefix(b"/").unwrap_or(&joined), path.as_bytes());
    } else {
        let too_long = model::normal(raw).join(&b'/').len() > 4095
            || raw.split(|byte| *byte == b'/').any(|name| name.len() > 255);
        assert!(raw.is_empty() || raw.contains(&0) || too_long, "{path:?}");
    }
    match MemberName::parse(raw) {
        Ok(MemberName::Plain(plain)) => {
            let names = plain.as_bytes().split(|byte| *byte == b'/');
            assert!(names.into_iter().all(|name| !name.starts_with(b".wh.")), "{plain}");
            assert_eq!(path, Ok(plain));
        }
        Ok(MemberName::Whiteout(hidden)) => assert!(!hidden.is_root()),
        Ok(MemberName::Opaque(_) | MemberName::Hidden(_) | MemberName::Dropped) => {}
        Err(NameError::Empty | NameError::Nul | NameError::LongComponent(_) | NameError::LongPath(_)) => {}
        Err(NameError::BareWhiteout | NameError::WhiteoutOfDots | NameError::BelowMarker) => {
            assert!(raw.windows(4).any(|name| name == b".wh."));
        }
    }
}
