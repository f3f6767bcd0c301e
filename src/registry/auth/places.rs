//! Where docker and podman keep their credential files.

use std::path::PathBuf;

/// The part of the environment that decides where credential files are.
pub(super) struct AuthPlaces<'a> {
    /// Returns the value of a variable; `None` if it is not set or empty.
    pub(super) variable: &'a dyn Fn(&str) -> Option<PathBuf>,
    /// The user's number.
    pub(super) uid: u32,
}

impl AuthPlaces<'_> {
    /// The files in order of precedence: podman's (containers-auth.json(5)), then docker's.
    ///
    /// `$REGISTRY_AUTH_FILE` replaces all places of podman.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let variable = self.variable;
        let below = |name: &str, rest: &str| variable(name).map(|directory| directory.join(rest));
        let mut files = Vec::new();
        match variable("REGISTRY_AUTH_FILE") {
            Some(file) => files.push(file),
            None => {
                files.extend(below("XDG_RUNTIME_DIR", "containers/auth.json"));
                files.push(self.runtime());
                files.extend(
                    below("XDG_CONFIG_HOME", "containers/auth.json")
                        .or_else(|| below("HOME", ".config/containers/auth.json")),
                );
            }
        }
        files.extend(below("DOCKER_CONFIG", "config.json").or_else(|| below("HOME", ".docker/config.json")));
        files
    }

    /// The file that `podman login` writes.
    pub(super) fn written(&self) -> PathBuf {
        let variable = self.variable;
        variable("REGISTRY_AUTH_FILE")
            .or_else(|| Some(variable("XDG_RUNTIME_DIR")?.join("containers/auth.json")))
            .unwrap_or_else(|| self.runtime())
    }

    /// The file of a user without `$XDG_RUNTIME_DIR`: under sudo, cron or systemd.
    fn runtime(&self) -> PathBuf {
        PathBuf::from(format!("/run/containers/{}/auth.json", self.uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_selects_the_files_of_docker_and_podman() {
        for (variables, expected, written) in [
            (&[][..], &["/run/containers/7/auth.json"][..], "/run/containers/7/auth.json"),
            (
                &[("HOME", "/h")],
                &["/run/containers/7/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"],
                "/run/containers/7/auth.json",
            ),
            (
                &[
                    ("HOME", "/h"),
                    ("XDG_RUNTIME_DIR", "/x"),
                    ("XDG_CONFIG_HOME", "/c"),
                    ("DOCKER_CONFIG", "/d"),
                ],
                &[
                    "/x/containers/auth.json",
                    "/run/containers/7/auth.json",
                    "/c/containers/auth.json",
                    "/d/config.json",
                ],
                "/x/containers/auth.json",
            ),
            (
                &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/x"), ("REGISTRY_AUTH_FILE", "/r")],
                &["/r", "/h/.docker/config.json"],
                "/r",
            ),
        ] {
            let variable = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            };
            let places = AuthPlaces { variable: &variable, uid: 7 };
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(places.files(), expected, "{variables:?}");
            assert_eq!(places.written(), PathBuf::from(written), "{variables:?}");
        }
    }
}
