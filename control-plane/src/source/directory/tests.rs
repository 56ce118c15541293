use std::time::Instant;

use super::*;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}\n";
const POLICY: &str = "apiVersion: byrnie.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {name: m, namespace: shop}\nspec: {mode: Permissive}\n";

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn names(objects: &Objects) -> Vec<String> {
    objects.items.keys().map(ToString::to_string).collect()
}

/// What the source says once it says what is wanted.
fn until(source: &DirectorySource, wanted: impl Fn(&Objects) -> bool) -> Arc<Objects> {
    let objects = source.objects();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = objects.borrow().clone();
        if wanted(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn files_are_read_recursively_and_followed() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("deep")).unwrap();
    std::fs::write(home.path().join("a.yaml"), namespace("a")).unwrap();
    std::fs::write(home.path().join("deep/b.yml"), namespace("b")).unwrap();
    std::fs::write(home.path().join(".hidden.yaml"), namespace("h")).unwrap();
    std::fs::write(home.path().join("notes.txt"), "nothing").unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    assert_eq!(names(&source.objects().borrow()), ["Namespace a", "Namespace b"]);

    std::fs::create_dir(home.path().join("new")).unwrap();
    std::fs::write(
        home.path().join("new/c.json"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"c\"}}",
    )
    .unwrap();
    until(&source, |objects| objects.items.len() == 3);
    std::fs::rename(home.path().join("deep/b.yml"), home.path().join("deep/b.txt")).unwrap();
    std::fs::write(home.path().join("a.yaml"), namespace("z")).unwrap();
    let objects =
        until(&source, |objects| names(objects).contains(&"Namespace z".to_owned()) && objects.items.len() == 2);
    assert_eq!(names(&objects), ["Namespace c", "Namespace z"]);
}

#[test]
fn a_damaged_or_emptied_file_keeps_what_it_said_last() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, format!("{}---\n{SERVICE}", namespace("a"))).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    for damaged in
        [format!("{}---\n{}", namespace("b"), &SERVICE[..SERVICE.len() - 9]), String::new(), "\u{0}".to_owned()]
    {
        std::fs::write(&path, damaged).unwrap();
        let objects = until(&source, |objects| !objects.problems.is_empty());
        assert_eq!(names(&objects), ["Namespace a", "Service shop/web"]);
        assert!(objects.problems[0].message.contains("stays in force"), "{}", objects.problems[0]);
        std::fs::write(&path, format!("{}---\n{SERVICE}", namespace("a"))).unwrap();
        until(&source, |objects| objects.problems.is_empty());
    }
    std::fs::remove_file(&path).unwrap();
    until(&source, |objects| objects.items.is_empty());
}

#[test]
fn a_file_that_somebody_is_still_writing_is_waited_for() {
    use std::io::Write;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, namespace("a")).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    let mut file = File::create(&path).unwrap();
    // Sound as it stands, and only half of what is meant.
    file.write_all(namespace("b").as_bytes()).unwrap();
    file.flush().unwrap();
    // As long as a file that nobody writes would take several times over.
    std::thread::sleep(limits::SOURCE_DEBOUNCE * 7);
    assert_eq!(names(&source.objects().borrow()), ["Namespace a"]);
    file.write_all(format!("---\n{}", namespace("c")).as_bytes()).unwrap();
    drop(file);
    let objects = until(&source, |objects| !names(objects).contains(&"Namespace a".to_owned()));
    assert_eq!(names(&objects), ["Namespace b", "Namespace c"]);
}

#[test]
fn a_file_that_is_replaced_by_a_new_one_never_seems_gone() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, namespace("a")).unwrap();
    let mut files = Files { root: home.path().to_owned(), known: BTreeMap::new(), lost: Vec::new() };
    let (mut watcher, _end) = Watcher::start(home.path());
    files.scan(&mut watcher);
    std::fs::remove_file(&path).unwrap();
    let scanned = files.scan(&mut watcher);
    assert!(scanned.unsettled && !scanned.changed && files.objects().items.len() == 1);
    let scanned = files.scan(&mut watcher);
    assert!(scanned.changed && files.objects().items.is_empty());
}

#[test]
fn a_policy_that_is_not_supported_yet_leaves_its_last_good_version_or_closes() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, POLICY).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    std::fs::write(&path, POLICY.replace("Permissive", "[")).unwrap();
    let objects = until(&source, |objects| !objects.problems.is_empty());
    let is_refused = |objects: &Objects| objects.items.values().any(is_stand_in);
    assert!(!is_refused(&objects) && objects.items.len() == 1);
    drop(source);

    let source = DirectorySource::open(home.path()).unwrap();
    assert!(is_refused(&source.objects().borrow()), "nothing earlier is known");
}

#[test]
fn of_two_objects_of_one_name_the_first_is_in_force_and_the_second_is_told() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("a.yaml"), SERVICE).unwrap();
    std::fs::write(home.path().join("b.yaml"), SERVICE.replace("10.1.0.1", "10.1.0.2")).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    let objects = source.objects().borrow().clone();
    assert_eq!(&*objects.items.values().next().unwrap().file, "a.yaml");
    assert_eq!(objects.problems.len(), 1);
    assert!(
        objects.problems[0].to_string().starts_with("b.yaml:1: Service shop/web: a second object"),
        "{}",
        objects.problems[0]
    );
}

#[test]
fn what_is_too_large_no_file_or_no_text_is_refused_alone() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("good.yaml"), namespace("a")).unwrap();
    std::fs::write(home.path().join("large.yaml"), vec![b'#'; usize::try_from(limits::SOURCE_FILE_BYTES).unwrap() + 1])
        .unwrap();
    std::fs::write(home.path().join("binary.yaml"), b"a: b\nc: \xff\n").unwrap();
    nix::unistd::mkfifo(&home.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("nowhere", home.path().join("dangling.yaml")).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    let objects = source.objects().borrow().clone();
    assert_eq!(names(&objects), ["Namespace a"]);
    let mut told: Vec<String> = objects.problems.iter().map(ToString::to_string).collect();
    told.sort();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[0].contains("line 2") && told[1].contains("4 MiB") && told[2].contains("not a regular file"),
        "{told:?}"
    );
}

#[test]
fn a_source_that_is_no_directory_is_refused_with_its_place() {
    let refused = DirectorySource::open(Path::new("/nonexistent/mesh")).unwrap_err().to_string();
    assert!(refused.contains("/nonexistent/mesh") && refused.contains("--source"), "{refused}");
}

#[test]
fn a_file_that_was_never_sound_keeps_the_objects_that_it_had_too() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, format!("{POLICY}---\n{}---\nkind: [\n", namespace("a"))).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    assert_eq!(names(&source.objects().borrow()), ["MtlsPolicy shop/m", "Namespace a"]);
    for damaged in [format!("{POLICY}---\nkind: Namespace\nmetadata: [\n"), "\u{0}".to_owned(), String::new()] {
        let before = source.objects().borrow().problems.clone();
        std::fs::write(&path, &damaged).unwrap();
        let objects = until(&source, |objects| objects.problems != before);
        assert_eq!(names(&objects), ["MtlsPolicy shop/m", "Namespace a"], "{damaged:?}");
    }
    std::fs::write(&path, POLICY).unwrap();
    until(&source, |objects| names(objects) == ["MtlsPolicy shop/m"]);
}

#[test]
fn a_namespace_of_a_version_that_nobody_knows_stays_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, namespace("a")).unwrap();
    let source = DirectorySource::open(home.path()).unwrap();
    std::fs::write(&path, namespace("a").replace("v1", "v2")).unwrap();
    let objects = until(&source, |objects| !objects.problems.is_empty());
    assert_eq!(names(&objects), ["Namespace a"]);
}

#[test]
fn a_file_that_can_not_be_looked_at_keeps_its_objects() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.yaml");
    std::fs::write(&path, POLICY).unwrap();
    let mut files = Files { root: home.path().to_owned(), known: BTreeMap::new(), lost: Vec::new() };
    let (mut watcher, _end) = Watcher::start(home.path());
    files.scan(&mut watcher);
    // A link to itself is there, and no look at it succeeds, for root neither.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("a.yaml", &path).unwrap();
    for _ in 0..3 {
        files.scan(&mut watcher);
    }
    let objects = files.objects();
    assert_eq!(names(&objects), ["MtlsPolicy shop/m"]);
    assert!(objects.problems[0].to_string().starts_with("a.yaml: can't be read"), "{}", objects.problems[0]);
}
