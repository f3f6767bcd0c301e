//! The canary itself detects every change.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use support::canary::Canary;
use support::images::run;

#[test]
fn canary_detects_every_change() {
    for script in [
        "touch new",
        "rm linked",
        "chmod 0667 secret; chmod 0666 secret",
        "chown 0 dir; chown 2001 dir",
        "touch -d @1000000000.5 dir/inner",
        "setfattr -n trusted.canary -v gone secret",
        "setfattr -x trusted.canary .",
        "printf 'of the host' >hostname; touch -d @1000000000.5 hostname",
        "ln dir/inner another",
        "mv secret x; mv x secret",
        "chmod 0777 .",
    ] {
        let canary = Canary::new();
        canary.assert_untouched("nothing");
        run("sh", &["-euc", &format!("cd $0; {script}"), canary.path()]);
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| canary.assert_untouched(script)));
        assert!(result.is_err(), "the canary should detect: {script}");
    }
    let mode = fs::metadata(Canary::new().path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o777, "the canary must be accessible to all users");
}
