//! What the machine has: memory, NUMA nodes, huge pages.

use std::fs;
use std::path::Path;

/// The bytes of memory that this process could have at the very most: the machine's, or less where a control group
/// (of a container or a service) sets a limit. `u64::MAX` if the system does not say.
pub fn machine_memory() -> u64 {
    // SAFETY: no memory is passed.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    let total = u64::try_from(pages).map_or(u64::MAX, |n| n.saturating_mul(page_size() as u64));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    total.min(group_limit(Path::new("/sys/fs/cgroup"), &groups).unwrap_or(u64::MAX))
}

/// The size of an ordinary page in bytes.
pub(super) fn page_size() -> usize {
    // SAFETY: no memory is passed.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// The least memory limit of the process's groups and of all above them. `groups` is `/proc/self/cgroup`; both the
/// unified hierarchy (`memory.max`) and the older one (`memory.limit_in_bytes`) are asked.
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (base, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        // A container may see its group's path but not the directories on it: the root it sees is then its own.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = fs::read_to_string(base.join(group).join(file)).ok();
            let limit = limit.and_then(|text| text.trim().parse().ok());
            least = [least, limit].into_iter().flatten().min();
        }
    }
    least
}

/// The NUMA nodes that have memory, as the kernel lists them (`0-1,4`); empty if it lists none.
pub(super) fn memory_nodes() -> String {
    let read = |file| fs::read_to_string(Path::new("/sys/devices/system/node").join(file));
    read("has_memory").or_else(|_| read("online")).unwrap_or_default().trim().to_owned()
}

/// Whether a list such as `0-1,4` has `n`.
pub(super) fn in_list(list: &str, n: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse(), last.trim().parse());
        first.is_ok_and(|f: u32| f <= n) && last.is_ok_and(|l: u32| n <= l)
    })
}

/// Free explicit huge pages of 2 MiB, if the kernel has such pages.
pub(super) fn free_huge_pages() -> Option<u64> {
    let text = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").ok()?;
    text.trim().parse().ok()
}

/// The chosen word of a kernel setting such as `always [madvise] never`, or why there is none.
pub(super) fn transparent_setting(file: &str) -> Result<String, String> {
    let path = format!("/sys/kernel/mm/transparent_hugepage/{file}");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    chosen(&text).map(str::to_owned).ok_or_else(|| format!("{path}: {}", text.trim()))
}

fn chosen(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists_are_ranges_and_numbers() {
        for (list, has, has_not) in [("0", 0, 1), ("0-1,4", 1, 2), ("0-1,4", 4, 5), ("2-3\n", 3, 0)] {
            assert!(in_list(list, has), "{list} has {has}");
            assert!(!in_list(list, has_not), "{list} has no {has_not}");
        }
        assert!(!in_list("", 0));
    }

    #[test]
    fn the_chosen_word_stands_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads the system's files")]
    fn the_least_group_limit_counts_at_any_height() {
        let root = std::env::temp_dir().join(format!("kvstrata-group-{}", std::process::id()));
        let leaf = root.join("system.slice/kv.service");
        let old = root.join("memory/box");
        fs::create_dir_all(&leaf).expect("create");
        fs::create_dir_all(&old).expect("create");
        let write = |path: &Path, text: &str| fs::write(path, text).expect("write");
        write(&leaf.join("memory.max"), "max\n");
        assert_eq!(group_limit(&root, "0::/system.slice/kv.service\n"), None);
        write(&root.join("system.slice/memory.max"), "1073741824\n");
        assert_eq!(group_limit(&root, "0::/system.slice/kv.service\n"), Some(1 << 30));
        write(&old.join("memory.limit_in_bytes"), "4096\n");
        assert_eq!(
            group_limit(&root, "9:cpu,memory:/box\n3:cpuset:/\n0::/system.slice/kv.service"),
            Some(4096)
        );
        assert_eq!(group_limit(&root, "garbage\n0::/elsewhere"), None);
        fs::remove_dir_all(&root).expect("remove");
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks the system")]
    fn the_machine_has_some_memory() {
        assert!((16 << 20..u64::MAX).contains(&machine_memory()));
    }
}
