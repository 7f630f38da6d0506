//! The one directory that everything of a run lives in.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{self, Path, PathBuf},
    process,
};

use crate::random;

/// `bastion-sync-{pid}-{random}`. Short: a socket's whole path has 103 bytes on macOS.
const NAME_PREFIX: &str = "bastion-sync-";

/// Removed when dropped. It is locked while its owner lives, so that later runs can tell what a killed one left.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    pub(crate) fn create() -> Directory {
        let parent = path::absolute(env::temp_dir()).expect("the temporary directory has a name");
        remove_stale(&parent);
        let path = parent.join(format!("{NAME_PREFIX}{}-{}", process::id(), random::hex(2)));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // PostgreSQL may run as another user, whatever the umask.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("our directory's mode can be set");
        let lock = File::create(path.join("lock")).expect("our directory is writable");
        lock.lock().expect("our own lock is free");
        Directory { path, _lock: lock }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing can be done about what cannot be removed; the next run tries again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(NAME_PREFIX)) else { continue };
        let Some(pid) = rest.split_once('-').and_then(|(pid, _)| pid.parse::<u32>().ok()) else { continue };
        if !is_alive(pid) && !is_locked(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_alive(pid: u32) -> bool {
    if Path::new("/proc/self").exists() {
        return Path::new(&format!("/proc/{pid}")).exists();
    }
    let status = process::Command::new("ps").args(["-p", &pid.to_string(), "-o", "pid="]).output();
    status.is_ok_and(|output| output.status.success())
}

/// Holds for a run in another container that shares this directory: its process is not to be seen from here.
fn is_locked(path: &Path) -> bool {
    File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_err())
}
