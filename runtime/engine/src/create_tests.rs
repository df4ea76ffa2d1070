use knarr_model::{Digest, WasmAbi};
use knarr_state::images::ImageRow;

use super::*;

fn image(workload: Workload, config: ImageConfig) -> Image {
    Image {
        row: ImageRow {
            id: Digest::from_bytes([1; 32]),
            manifest: Digest::from_bytes([2; 32]),
            config: Digest::from_bytes([3; 32]),
            workload,
            reason: String::new(),
            platform: Platform::host(),
            size: 0,
            layers: Vec::new(),
            created: 0,
            stored: 0,
            tags: Vec::new(),
            digests: Vec::new(),
        },
        config,
    }
}

fn native(config: ImageConfig) -> Image {
    image(Workload::Native { platform: Platform::host() }, config)
}

fn list(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|&word| word.to_owned()).collect())
}

fn config() -> ImageConfig {
    ImageConfig {
        entrypoint: list(&["/entry"]),
        cmd: list(&["default"]),
        env: vec!["A=image".into(), "B=image".into()],
        user: Some("app".into()),
        working_dir: Some("/srv".into()),
        ..ImageConfig::default()
    }
}

#[test]
fn entrypoint_and_command_combine_as_docker_does() {
    let argv = |entrypoint: Option<Vec<String>>, cmd: Option<Vec<String>>| {
        let spec = ContainerSpec { entrypoint, cmd, ..ContainerSpec::default() };
        merge(spec, &native(config())).map(|(_, argv)| argv)
    };
    assert_eq!(argv(None, None).unwrap(), ["/entry", "default"]);
    assert_eq!(argv(None, list(&["x"])).unwrap(), ["/entry", "x"]);
    assert_eq!(argv(list(&["/other"]), None).unwrap(), ["/other"]);
    assert_eq!(argv(list(&["/other"]), list(&["y"])).unwrap(), ["/other", "y"]);
    assert_eq!(argv(list(&[""]), list(&["y"])).unwrap(), ["y"]);
    assert!(argv(list(&[""]), None).is_err(), "no command specified");
}

#[test]
fn the_image_counts_where_the_request_says_nothing() {
    let spec = ContainerSpec {
        env: vec!["B=request".into(), "C=request".into()],
        working_dir: Some("/a/./b/../c".into()),
        ..ContainerSpec::default()
    };
    let (merged, _) = merge(spec, &native(config())).unwrap();
    assert_eq!(merged.env, ["A=image", "B=request", "C=request"]);
    assert_eq!(merged.user.as_deref(), Some("app"));
    assert_eq!(merged.working_dir.as_deref(), Some(Path::new("/a/c")));
}

#[test]
fn x09_what_the_kernel_would_refuse_is_refused_before() {
    let with = |cmd: Vec<String>| {
        let spec = ContainerSpec { cmd: Some(cmd), ..ContainerSpec::default() };
        merge(spec, &native(ImageConfig::default()))
    };
    assert!(with(vec!["x".repeat(3 << 20)]).is_err());
    assert!(with(vec!["a\0b".into()]).is_err());
    assert!(with(Vec::new()).is_err());
    let long: Vec<String> = (0..3 << 20).map(|_| String::new()).collect();
    assert!(check_length(long.iter()).is_err());
}

/// Each entry compared with each other one would take hours.
#[test]
fn x09_a_million_variables_are_merged_one_by_one() {
    let many: Vec<String> = (0..1_000_000).map(|n| format!("N{n}=image")).collect();
    let over: Vec<String> = (0..1_000_000)
        .map(|n| if n % 2 == 0 { format!("N{n}=request") } else { format!("N{n}") })
        .collect();
    let merged = oci::overlay_env(many, &over);
    assert_eq!(merged.len(), 500_000);
    assert_eq!((merged[0].as_str(), merged[1].as_str()), ("N0=request", "N2=request"));
}

#[test]
fn x09_many_volumes_of_an_image_are_mounted_once_each() {
    let path = |n: usize| PathBuf::from(format!("/v{n}"));
    let image = ImageConfig { volumes: (0..200_000).map(path).collect(), ..config() };
    let spec = ContainerSpec {
        anonymous_volumes: (100_000..300_000).map(path).collect(),
        ..ContainerSpec::default()
    };
    assert_eq!(wanted_mounts(&spec, &image).len(), 300_000);
}

#[test]
fn a_wasm_program_has_a_name_even_if_nobody_gave_one() {
    let wasm = |path: Option<&str>| {
        let workload = Workload::Wasm {
            abi: WasmAbi::ComponentCommand,
            module: Digest::from_bytes([9; 32]),
            path: path.map(str::to_owned),
        };
        let spec = ContainerSpec { cmd: list(&["arg"]), ..ContainerSpec::default() };
        merge(spec, &image(workload, ImageConfig::default())).unwrap().1
    };
    assert_eq!(wasm(None), ["main.wasm", "arg"]);
    assert_eq!(wasm(Some("/app/hello.wasm")), ["hello.wasm", "arg"]);
}

#[test]
fn what_a_wasm_container_has_no_use_for_is_refused_with_a_hint() {
    let mut refused: Vec<ContainerSpec> = vec![ContainerSpec::default(); 5];
    refused[0].security.privileged = true;
    refused[1].security.cap_add = vec!["NET_ADMIN".into()];
    refused[2].security.seccomp = SeccompChoice::Unconfined;
    refused[3].sysctls.insert("net.core.somaxconn".into(), "1".into());
    refused[4].pid_mode = NamespaceMode::Host;
    for spec in &refused {
        let error = refuse_for_wasm(spec).unwrap_err();
        assert!(error.message().contains("hint: "), "{error}");
    }
    assert!(refuse_for_wasm(&ContainerSpec::default()).is_ok());
}

#[test]
fn anonymous_volumes_yield_to_mounts() {
    let image = ImageConfig {
        volumes: ["/data".into(), "/cache/deep".into()].into(),
        ..ImageConfig::default()
    };
    let mut spec =
        ContainerSpec { anonymous_volumes: ["/mine".into()].into(), ..ContainerSpec::default() };
    spec.mounts.push(MountSpec {
        target: "/data".into(),
        read_only: false,
        kind: MountKind::Tmpfs { size: None, mode: None, options: Vec::new() },
    });
    let targets: Vec<PathBuf> =
        wanted_mounts(&spec, &image).into_iter().map(|mount| mount.target).collect();
    assert_eq!(targets, [Path::new("/data"), Path::new("/mine"), Path::new("/cache/deep")]);
}

#[test]
fn limits_that_make_no_sense_are_refused_in_dockers_words() {
    let check = |limits: knarr_model::Resources| check_resources(&limits, true, &mut Vec::new());
    let base = knarr_model::Resources::default;
    assert!(check(base()).is_ok());
    for bad in [
        knarr_model::Resources { memory: Some(1 << 20), ..base() },
        knarr_model::Resources { memory_swap: Some(1 << 30), ..base() },
        knarr_model::Resources { memory: Some(64 << 20), memory_swap: Some(32 << 20), ..base() },
        knarr_model::Resources { nano_cpus: Some(u64::MAX), ..base() },
        knarr_model::Resources { nano_cpus: Some(1), cpu_quota: Some(5000), ..base() },
        knarr_model::Resources { cpu_period: Some(1), ..base() },
    ] {
        assert!(check(bad.clone()).is_err(), "{bad:?}");
    }
    let mut warnings = Vec::new();
    let limited = knarr_model::Resources { memory: Some(64 << 20), ..base() };
    check_resources(&limited, false, &mut warnings).unwrap();
    assert_eq!(warnings.len(), 1);
}

#[test]
fn a_foreign_platform_is_warned_of() {
    let foreign = Workload::Native { platform: "linux/s390x".parse().unwrap() };
    assert!(platform_warning(&ContainerSpec::default(), &foreign).unwrap().contains("linux/s390x"));
    let own = Workload::Native { platform: Platform::host() };
    assert_eq!(platform_warning(&ContainerSpec::default(), &own), None);
}

#[test]
fn supplementary_groups_are_numbers_or_names() {
    let with = |group: &str| {
        check_groups(&ContainerSpec {
            group_add: vec![group.to_owned()],
            ..ContainerSpec::default()
        })
    };
    assert!(with("20").is_ok() && with("audio").is_ok());
    for bad in ["-1", "2147483648", "4294967296", "a:b", "a,b", ""] {
        assert!(with(bad).unwrap_err().message().contains(bad), "{bad}");
    }
}
