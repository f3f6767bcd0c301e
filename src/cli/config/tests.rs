//! Tests of the configuration.

use std::time::Duration;

use super::*;

#[test]
fn every_key_is_optional_and_unknown_keys_are_errors() {
    let empty = Config::parse("").unwrap();
    assert!(empty.default_registry.is_none());
    let full = Config::parse(
        "default-registry = 'reg.example:5000'\nmirrors.'index.docker.io' = ['mirror.example/hub', 'b:1']\nplain-http = ['a:1']\nplatform = 'linux/arm64'\n\
         store = '/s'\nstore-group = '7'\nrun-dir = '/r'\n[limits]\nlayer-size-mib = 7\nlayer-ratio = 30\n[erofs]\nplain = 'used'\nplain-budget = '20G'\nidle = 300\nprefetch = false\n[mount]\nthreads = 3\ncache-mib = 64\nread-ahead-kib = 512\n\
         [root]\nupper-dir = '/u'\nupper = 'tmpfs:64M'\ninodes = '32bit'\n\
         [run]\nsandbox = 'bwrap'\nbox-ids = '5-7'\nbwrap-user = '1000:5'\nbwrap-image-user = true\n\
         [isolate]\npath = '/i'\nmountpoint = '/images'\nupper = 'tmpfs:64M'\nwritable = true\ninject = false\nenv-from-image = ['PATH', 'LANG']\nhost-commands = ['/usr/bin/recodex-*']\n\
         [environments]\nqueue = '/q'\nregistries = ['reg.example/lab']\ncontext-limit = '64M'\nregistry = 'reg.example/env'\nallowed-signers = '/k'\nhwgroup = 'group1'\n\
         [isolate.images]\ndefault = 'a'\n7 = 'b:1'\n10-19 = 'c'\n",
    )
    .unwrap();
    assert_eq!(full.mirrors().unwrap()["docker.io"].len(), 2);
    let image = |id| full.isolate.box_images().unwrap().of_box(id).map(ToString::to_string);
    assert_eq!((image(7).as_deref(), image(12).as_deref()), (Some("b:1"), Some("c:latest")));
    assert_eq!(full.upper(None).unwrap(), Upper::Tmpfs { size: 64 << 20 });
    assert_eq!(full.upper(Some(Upper::None)).unwrap(), Upper::None);
    assert_eq!(empty.upper(None).unwrap(), Upper::Dir { limit: None });
    assert_eq!(full.inodes(None).unwrap(), InodeWidth::Bits32);
    assert_eq!(full.inodes(Some(InodeWidth::Bits64)).unwrap(), InodeWidth::Bits64);
    assert_eq!(empty.inodes(None).unwrap(), InodeWidth::Bits64);
    assert_eq!((full.store_group().unwrap(), empty.store_group().unwrap()), (Some(7), None));
    assert_eq!(full.mount.cache_mib, Some(64));
    assert_eq!((full.erofs.plain, full.erofs.plain_budget().unwrap()), (PlainChoice::Used, Some(20 << 30)));
    assert_eq!((full.erofs.idle(), full.erofs.prefetch), (Duration::from_secs(300), false));
    assert_eq!((empty.erofs.plain, empty.erofs.plain_budget().unwrap()), (PlainChoice::Never, None));
    assert_eq!((empty.erofs.idle(), empty.erofs.prefetch), (Duration::from_secs(60), true));
    assert_eq!(full.environments.queue.as_deref(), Some(Path::new("/q")));
    assert_eq!(
        (full.environments.context_limit().unwrap(), empty.environments.context_limit().unwrap()),
        (64 << 20, 1 << 30)
    );
    assert!(
        full.environments.registries().unwrap().is_some()
            && empty.environments.registries().unwrap().is_none()
    );
    assert_eq!(full.environments.registry(None).unwrap().to_string(), "reg.example/env");
    assert!(empty.environments.registry(None).is_err());
    assert_eq!(full.environments.hwgroup().unwrap(), Some("group1".parse().unwrap()));
    assert_eq!(full.limits.layer(), LayerLimits { tar_bytes: 7 << 20, ratio: 30 });
    assert_eq!(empty.limits.layer(), LayerLimits::default());
    assert_eq!(full.isolate.env_from_image().unwrap(), ["PATH", "LANG"]);
    assert_eq!(empty.isolate.env_from_image().unwrap(), ["PATH"]);
    assert_eq!((full.isolate.inject, empty.isolate.inject), (Some(false), None));
    assert_eq!(full.run.sandbox().unwrap(), SandboxKind::Bwrap);
    assert_eq!(full.run.box_ids().unwrap(), "5-7".parse().unwrap());
    assert_eq!(full.run.bwrap_user().unwrap(), "1000:5".parse().unwrap());
    assert!(full.run.bwrap_image_user && !empty.run.bwrap_image_user);
    assert_eq!(empty.run.box_ids().unwrap(), "900-999".parse().unwrap());
    let error = Config::parse("\n\ndefault_registry = 'x'").unwrap_err().to_string();
    assert!(error.starts_with("line 3: unknown field `default_registry`, expected one of"), "{error}");
}

#[test]
fn invalid_values_are_errors_when_the_file_is_read() {
    for (text, expected) in [
        ("default-registry = 'no host'", "default registry `no host` is not a host"),
        ("[mirrors]\n'docker.io' = ['mirror']", "table [mirrors]: mirror `mirror` of docker.io"),
        ("[mirrors]\n'no host' = ['m:1']", "table [mirrors]"),
        ("[mirrors]\n'docker.io' = 'm:1'", "line 2: "),
        ("platform = 'x'", "platform `x` is not of the form"),
        ("[mount]\nthreads = 0", "line 2: invalid value: integer `0`"),
        ("[limits]\nlayer-ratio = 0", "line 2: invalid value: integer `0`"),
        (
            "[erofs]\nplain = 'sometimes'",
            "line 2: unknown variant `sometimes`, expected one of `never`, `used`",
        ),
        ("[erofs]\nplain-budget = '20 GB'", "table [erofs]"),
        ("[erofs]\nplain-budget = 20", "line 2: invalid type: integer `20`, expected a string"),
        ("[environments]\nregistries = ['lab']", "table [environments]"),
        ("[environments]\ncontext-limit = '1 GB'", "table [environments]"),
        ("[environments]\nregistry = 'env'", "table [environments]"),
        ("[environments]\nhwgroup = 'a b'", "table [environments]"),
        ("store =\nrun-dir = 1", "line 1: "),
        ("[run]\nsandbox = 'docker'", "sandbox `docker`: expected auto, isolate or bwrap"),
        ("[run]\nbox-ids = '9-1'", "box ids `9-1` do not have the form FIRST-LAST"),
        ("[run]\nbwrap-user = 'root'", "bwrap-user `root`: expected UID[:GID], in numbers"),
        ("[root]\nupper = 'ram'", "upper `ram` is invalid: expected"),
        ("[root]\ninodes = '16bit'", "inode numbers `16bit` are not supported: expected"),
        ("[isolate]\nupper = 'disk'", "table [isolate]"),
        ("[isolate]\nhost-commands = ['recodex-*']", "table [isolate]"),
        ("[isolate]\nenv-from-image = ['A=1']", "table [isolate]"),
        ("[isolate.images]\nx = 'a'", "table [isolate.images]"),
    ] {
        let error = Config::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn file_in_the_config_option_must_exist() {
    let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
    assert!(format!("{error:#}").starts_with("configuration /nonexistent/config.toml: "));
}
