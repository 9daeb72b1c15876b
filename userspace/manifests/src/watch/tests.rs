//! Every way in which files change under a watch.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Fixture {
    root: tempfile::TempDir,
    watch: Watch,
}

impl Fixture {
    /// A watched directory `m` with these files, its first content taken.
    async fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("m")).unwrap();
        for (file, pod_name) in files {
            fs::write(root.path().join("m").join(file), pod(pod_name)).unwrap();
        }
        let watch = Directory::open(root.path().join("m")).unwrap().watch().unwrap();
        let mut fixture = Self { root, watch };
        fixture.next().await;
        fixture
    }

    fn at(&self, file: &str) -> PathBuf {
        self.root.path().join("m").join(file)
    }

    async fn next(&mut self) -> Vec<String> {
        let snapshot = tokio::time::timeout(DEADLINE, self.watch.next()).await.unwrap().unwrap();
        snapshot.documents.iter().map(|d| d.key().name.to_string()).collect()
    }

    /// Until the content is this; fails on one that is in `never`.
    async fn until(&mut self, wanted: &[&str], never: &[&[&str]]) {
        loop {
            let names = self.next().await;
            assert!(!never.contains(&&names.iter().map(String::as_str).collect::<Vec<_>>()[..]), "{names:?}");
            if names == wanted {
                return;
            }
        }
    }
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")
}

#[tokio::test]
async fn the_first_content_comes_at_once_even_when_it_is_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut watch = Directory::open(root.path()).unwrap().watch().unwrap();
    assert_eq!(watch.next().await.unwrap().documents.len(), 0);
}

#[tokio::test]
async fn a_file_written_in_place_is_never_seen_half() {
    let mut fixture = Fixture::new(&[("a.yaml", "a")]).await;
    let mut file = fs::File::create(fixture.at("a.yaml")).unwrap();
    fs::write(fixture.at("b.yaml"), pod("b")).unwrap();
    assert_eq!(fixture.next().await, ["a", "b"]);
    file.write_all(pod("half").as_bytes()).unwrap();
    fs::write(fixture.at("c.yaml"), pod("c")).unwrap();
    assert_eq!(fixture.next().await, ["a", "b", "c"]);
    file.write_all(b"---\n").unwrap();
    drop(file);
    fixture.until(&["half", "b", "c"], &[]).await;
}

#[tokio::test]
async fn an_atomic_replacement_is_one_change() {
    let mut fixture = Fixture::new(&[("a.yaml", "a")]).await;
    fs::write(fixture.at(".a.yaml.tmp"), pod("a2")).unwrap();
    fs::rename(fixture.at(".a.yaml.tmp"), fixture.at("a.yaml")).unwrap();
    assert_eq!(fixture.next().await, ["a2"]);
}

#[tokio::test]
async fn an_editor_that_renames_the_old_file_away_never_makes_it_vanish() {
    let mut fixture = Fixture::new(&[("a.yaml", "a")]).await;
    fs::rename(fixture.at("a.yaml"), fixture.at("a.yaml~")).unwrap();
    fs::write(fixture.at("b.yaml"), pod("b")).unwrap();
    assert_eq!(fixture.next().await, ["a", "b"]);
    fs::write(fixture.at("a.yaml"), pod("a2")).unwrap();
    fs::remove_file(fixture.at("a.yaml~")).unwrap();
    fixture.until(&["a2", "b"], &[]).await;
}

#[tokio::test]
async fn a_file_renamed_away_for_good_is_gone() {
    let mut fixture = Fixture::new(&[("a.yaml", "a"), ("b.yaml", "b")]).await;
    fs::rename(fixture.at("a.yaml"), fixture.at("a.off")).unwrap();
    fixture.until(&["b"], &[]).await;
}

#[tokio::test]
async fn a_deleted_file_is_gone() {
    let mut fixture = Fixture::new(&[("a.yaml", "a"), ("b.yaml", "b")]).await;
    fs::remove_file(fixture.at("a.yaml")).unwrap();
    assert_eq!(fixture.next().await, ["b"]);
}

#[tokio::test]
async fn a_config_map_swap_changes_all_files_together() {
    let root = tempfile::tempdir().unwrap();
    let version = |name: &str, suffix: &str| {
        let dir = root.path().join(name);
        fs::create_dir(&dir).unwrap();
        for file in ["a.yaml", "b.yaml"] {
            fs::write(dir.join(file), pod(&format!("{}{suffix}", &file[..1]))).unwrap();
        }
    };
    version("..1", "1");
    symlink("..1", root.path().join("..data")).unwrap();
    for file in ["a.yaml", "b.yaml"] {
        symlink(format!("..data/{file}"), root.path().join(file)).unwrap();
    }
    let watch = Directory::open(root.path()).unwrap().watch().unwrap();
    let mut fixture = Fixture { root, watch };
    assert_eq!(fixture.next().await, ["a1", "b1"]);
    let root = fixture.root.path();
    fs::create_dir(root.join("..2")).unwrap();
    fs::write(root.join("..2/a.yaml"), pod("a2")).unwrap();
    fs::write(root.join("..2/b.yaml"), pod("b2")).unwrap();
    symlink("..2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(fixture.next().await, ["a2", "b2"]);
}

#[tokio::test]
async fn a_directory_that_comes_back_is_followed_and_held_in_between() {
    let mut fixture = Fixture::new(&[("a.yaml", "a")]).await;
    let m = fixture.root.path().join("m");
    fs::rename(&m, fixture.root.path().join("old")).unwrap();
    let missing = tokio::time::timeout(DEADLINE, fixture.watch.next()).await.unwrap().unwrap();
    assert_eq!(missing.documents.len(), 1, "what was known stays in force");
    assert!(matches!(*missing.faults[0].error, crate::FileError::Directory(_)));
    fs::create_dir(&m).unwrap();
    fs::write(m.join("b.yaml"), pod("b")).unwrap();
    fixture.until(&["b"], &[]).await;
    fs::write(m.join("c.yaml"), pod("c")).unwrap();
    fixture.until(&["b", "c"], &[]).await;
}

#[tokio::test]
async fn a_cancelled_wait_loses_no_change() {
    let mut fixture = Fixture::new(&[("a.yaml", "a")]).await;
    assert!(tokio::time::timeout(Duration::from_millis(1), fixture.watch.next()).await.is_err());
    fs::write(fixture.at("b.yaml"), pod("b")).unwrap();
    // Cancelled at an arbitrary point of the work that the change has begun.
    let _ = tokio::time::timeout(Duration::from_micros(300), fixture.watch.next()).await;
    fs::write(fixture.at("c.yaml"), pod("c")).unwrap();
    fixture.until(&["a", "b", "c"], &[]).await;
}
