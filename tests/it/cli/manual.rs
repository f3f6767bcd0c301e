//! The manual: `manual`, the man pages, and that they describe everything that can be used.

use super::Scene;

#[test]
fn manual_lists_its_pages_and_prints_them_as_they_are_written() {
    let scene = Scene::new();
    let list = scene.program.ok(&["manual"]);
    assert!(
        list.lines().any(|line| line.starts_with("config ") && line.ends_with("configuration file")),
        "{list}"
    );
    for name in ["config", "rcx-imagefs-config", "rcx-imagefs-config(5)"] {
        let page = scene.program.ok(&["manual", name]);
        assert!(page.starts_with("# rcx-imagefs-config(5): "), "{page}");
    }
    let (error, hint) = scene.fails(&["manual", "nothing"]);
    assert_eq!(error, "the manual has no page `nothing`");
    assert!(hint.unwrap().contains("config"));
}
