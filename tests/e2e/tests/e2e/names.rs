//! Names and prefixes of ids: one object is meant, or none.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{raw, world};

/// Names below the engine's containers.
fn directories(root: &Path) -> usize {
    fs::read_dir(root.join("containers")).map_or(0, Iterator::count)
}

#[test]
fn a08_one_of_a_hundred_gets_the_name() {
    let world = world();
    let socket = raw::socket(&world);
    let body = json!({"Image": "busybox", "Cmd": ["true"], "Volumes": {"/v": {}}});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| raw::send(&socket, "POST", "/containers/create?name=one", &body))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let mut count = BTreeMap::<u16, usize>::new();
    for answer in &answers {
        *count.entry(answer.status).or_default() += 1;
    }
    assert_eq!(count, BTreeMap::from([(201, 1), (409, 99)]));
    let refused = answers.iter().find(|answer| answer.status == 409).expect("one");
    let message = refused.json()["message"].to_string();
    assert!(message.contains("The container name \\\"/one\\\" is already in use"), "{message}");
    // Who lost made nothing that stays.
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok().lines().count(), 1);
    assert_eq!(directories(&world.data_root()), 1);
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok().lines().count(), 1);
}

#[test]
fn a07_a_prefix_means_one_container_or_none() {
    let world = world();
    let socket = raw::socket(&world);
    let create = |name: &str| {
        let path = format!("/containers/create?name={name}");
        let answer = raw::send(&socket, "POST", &path, &json!({"Image": "busybox"}));
        assert_eq!(answer.status, 201, "{name}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()["Id"].as_str().expect("an id").to_owned()
    };
    let means = |key: &str| {
        let answer = raw::send(&socket, "GET", &format!("/containers/{key}/json"), &Value::Null);
        (answer.status, answer.json()["Id"].as_str().map(str::to_owned))
    };
    // Seventeen ids have sixteen first digits.
    let ids: Vec<String> = (0..17).map(|n| create(&format!("c{n}"))).collect();
    let (one, other) = ids
        .iter()
        .flat_map(|one| ids.iter().map(move |other| (one, other)))
        .find(|(one, other)| one < other && one[..1] == other[..1])
        .expect("two with the same first digit");
    let common = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();

    // In doubt nothing is removed, by force neither.
    for verb in ["", "?force=1"] {
        let path = format!("/containers/{}{verb}", &one[..common]);
        let answer = raw::send(&socket, "DELETE", &path, &Value::Null);
        assert_eq!(answer.status, 400);
        let said = answer.json()["message"].to_string();
        assert!(said.contains("Multiple IDs found with provided prefix"), "{said}");
    }
    assert_eq!(means(&one[..common]).0, 400);
    assert_eq!(means(&one[..=common]).1.as_ref(), Some(one));
    assert_eq!(means("zz").0, 404);

    // An exact name is meant before a prefix, and a whole id before a name.
    let short = &one[..12];
    let named = create(short);
    assert_eq!(means(short).1.as_ref(), Some(&named));
    let disguised = create(other);
    assert_eq!(means(other).1.as_ref(), Some(other));
    assert_eq!(
        raw::send(&socket, "DELETE", &format!("/containers/{short}"), &Value::Null).status,
        204
    );
    assert_eq!(means(&named).0, 404, "the one of that name went");
    assert_eq!(means(short).1.as_ref(), Some(one), "not the one whose id begins so");
    assert_eq!(means(&disguised).0, 200);
}
