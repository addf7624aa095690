//! The declarations of `cufile-sys` against NVIDIA's own header.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::wheel::Wheel;
use crate::workspace::{Workspace, cargo};

/// What was asked for.
#[derive(Debug, Default)]
struct Asked {
    header: Option<PathBuf>,
    wheel: bool,
}

impl Asked {
    fn parse(args: &[String]) -> Result<Self> {
        let mut asked = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--header" => asked.header = Some(args.next().context("--header needs a file")?.into()),
                "--wheel" => asked.wheel = true,
                other => bail!("cannot make sense of {other}; there are --header FILE and --wheel"),
            }
        }
        Ok(asked)
    }

    /// The flag's, the toolkit's, or the wheel's.
    fn find(&self, workspace: &Workspace) -> Result<Option<PathBuf>> {
        if let Some(header) = &self.header {
            if !header.exists() {
                bail!("there is no {}", header.display());
            }
            return Ok(Some(header.clone()));
        }
        if self.wheel {
            return Ok(Some(Wheel::get(workspace)?.header()));
        }
        let toolkits = std::env::var_os("CUDA_HOME").map(PathBuf::from).into_iter();
        let toolkits = toolkits.chain(["/usr/local/cuda", "/opt/cuda", "/usr"].map(PathBuf::from));
        Ok(toolkits.map(|t| t.join("include/cufile.h")).find(|h| h.exists()))
    }
}

/// Finds a header, binds it with bindgen into `target/cufile`, and fails on every difference. Without a header or libclang it says so.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    if !cfg!(feature = "bindings") {
        // bindgen takes over a minute to build: only who asks for it waits for it.
        let again =
            ["run", "--quiet", "--package", "xtask", "--features", "bindings", "--", "cufile-bindings"];
        let ok = super::succeeds(cargo().args(again).args(args))?;
        return Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let workspace = Workspace::load()?;
    let Some(header) = Asked::parse(args)?.find(&workspace)? else {
        println!(
            "not run: there is no cufile.h in CUDA_HOME or the usual places; --header FILE names one, --wheel fetches NVIDIA's"
        );
        return Ok(ExitCode::SUCCESS);
    };
    compare(&workspace, &header)
}

#[cfg(not(feature = "bindings"))]
fn compare(_: &Workspace, _: &std::path::Path) -> Result<ExitCode> {
    bail!("built without the feature bindings")
}

#[cfg(feature = "bindings")]
use drift::compare;

#[cfg(feature = "bindings")]
mod drift {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::process::{Command, ExitCode};

    use anyhow::{Context, Result, bail};
    use kvstrata_cufile_sys::{declared, stats};

    use crate::findings::Findings;
    use crate::workspace::Workspace;

    const CRATE: &str = "crates/cufile-sys";

    pub(super) fn compare(workspace: &Workspace, header: &Path) -> Result<ExitCode> {
        let Some(text) = bind(workspace, header)? else { return Ok(ExitCode::SUCCESS) };
        let bound = Bound::read(&text);
        let mut findings = Findings::default();
        signatures(&bound, &mut findings);
        layouts(&bound, &mut findings);
        constants(&bound, &mut findings);
        findings.note(format_args!(
            "{} functions, {} structs and {} numbers as in {}",
            declared::SIGNATURES.len(),
            declared::LAYOUTS.len(),
            declared::constants().len(),
            header.display()
        ));
        Ok(if findings.print("cufile-bindings") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Runs bindgen. `None`, with a line, without libclang.
    fn bind(workspace: &Workspace, header: &Path) -> Result<Option<String>> {
        let folder = workspace.root.join("target/cufile/bindings");
        std::fs::create_dir_all(&folder)?;
        // The header wants three types of cuda.h, which comes with the whole toolkit only.
        let beside = header.with_file_name("cuda.h");
        if !beside.exists() {
            let types = "#pragma once\ntypedef enum cudaError_enum { CUDA_SUCCESS = 0 } CUresult;\n\
                         typedef struct CUstream_st *CUstream;\n";
            std::fs::write(folder.join("cuda.h"), types)?;
        }
        // libclang from PyPI has no headers of the compiler's own; the C compiler has.
        let own = Command::new("cc").arg("-print-file-name=include").output();
        let own = own.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        let builder = bindgen::Builder::default()
            .header(header.to_string_lossy())
            .clang_args(["-I".to_owned() + &folder.to_string_lossy(), "-isystem".to_owned() + &own])
            .allowlist_file(".*cufile\\.h")
            .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
            .merge_extern_blocks(true)
            .layout_tests(true);
        // It panics where there is no libclang, and for nothing else that may be passed over.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.generate()));
        std::panic::set_hook(hook);
        let bindings = match made {
            Ok(made) => made.context("bindgen cannot read the header")?,
            Err(panic) => {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
                if !said.contains("libclang") {
                    bail!("bindgen panicked: {said}");
                }
                println!("not run: there is no libclang (apt-get install libclang-dev, or LIBCLANG_PATH)");
                return Ok(None);
            }
        };
        let text = bindings.to_string();
        std::fs::write(folder.join("bindings.rs"), &text)?;
        if text.len() < 1000 {
            bail!("bindgen found next to nothing in {}", header.display());
        }
        Ok(Some(text))
    }

    /// What the header says, by name.
    #[derive(Default)]
    struct Bound {
        /// Types of the arguments, and of the result.
        functions: BTreeMap<String, (Vec<String>, String)>,
        sizes: BTreeMap<String, u64>,
        aligns: BTreeMap<String, u64>,
        offsets: BTreeMap<(String, String), u64>,
        numbers: BTreeMap<(String, String), u64>,
    }

    impl Bound {
        /// Reads what bindgen prints, whose form is regular.
        fn read(text: &str) -> Self {
            let mut bound = Self::default();
            // One space between words, so that broken lines read like whole ones.
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for piece in text.split("pub fn ").skip(1) {
                let Some((declaration, _)) = piece.split_once(';') else { continue };
                let Some((name, rest)) = declaration.split_once('(') else { continue };
                let Some((arguments, result)) = rest.rsplit_once(')') else { continue };
                let types = arguments.split(',').filter_map(|a| a.split_once(':')).map(|(_, t)| plain(t));
                let result = result.trim().strip_prefix("->").map_or_else(|| "()".to_owned(), plain);
                bound.functions.insert(name.trim().to_owned(), (types.collect(), result));
            }
            for (kind, to) in [("Size of ", &mut bound.sizes), ("Alignment of ", &mut bound.aligns)] {
                for (name, value) in asserted(&text, kind) {
                    to.insert(name, value);
                }
            }
            for (path, value) in asserted(&text, "Offset of field: ") {
                if let Some((name, field)) = path.split_once("::") {
                    bound.offsets.insert((name.to_owned(), field.to_owned()), value);
                }
            }
            for piece in text.split("pub const ").skip(1) {
                // `NAME: TYPE = TYPE(VALUE);` of an enum, `NAME: u32 = VALUE;` of a macro.
                let Some((declaration, _)) = piece.split_once(';') else { continue };
                let Some((name, rest)) = declaration.split_once(':') else { continue };
                let Some((kind, value)) = rest.split_once('=') else { continue };
                let (kind, value) = (kind.trim(), value.trim());
                let number = value.strip_prefix(kind).map_or(value, |v| v.trim_matches(['(', ')']));
                if let Ok(number) = number.parse() {
                    let kind = if kind == "u32" { "" } else { kind };
                    bound.numbers.insert((kind.to_owned(), name.trim().to_owned()), number);
                }
            }
            bound
        }
    }

    /// `["KIND NAME"][::std::mem::size_of::<..>() - VALUEusize];`
    fn asserted(text: &str, kind: &str) -> Vec<(String, u64)> {
        let start = format!("[\"{kind}");
        let pieces = text.split(&start).skip(1);
        let one = |piece: &str| {
            let (name, rest) = piece.split_once('"')?;
            let (before, _) = rest.split_once("usize]")?;
            let (_, value) = before.rsplit_once('-')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        pieces.filter_map(one).collect()
    }

    /// A type without the paths and names that mean the same everywhere.
    fn plain(name: &str) -> String {
        let mut name: String = name.split_whitespace().collect::<Vec<_>>().join(" ");
        for (from, to) in
            [("::std::os::raw::", ""), ("::core::ffi::", ""), ("off_t", "i64"), ("usize_t", "usize")]
        {
            name = name.replace(from, to);
        }
        name
    }

    /// A type of the crate as the header calls it.
    fn theirs(ours: &str) -> String {
        let words = ours.split(' ').map(|word| {
            declared::NAMES.iter().find(|(our, _)| *our == word).map_or(word, |(_, their)| *their)
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn signatures(bound: &Bound, findings: &mut Findings) {
        for ours in declared::SIGNATURES {
            let Some((arguments, result)) = bound.functions.get(ours.symbol) else {
                findings.fail(CRATE, format_args!("the header has no {}", ours.symbol));
                continue;
            };
            let own: Vec<String> = ours.arguments.iter().map(|a| theirs(a)).collect();
            let own_result = theirs(ours.result);
            // A struct that is written by versions with more room than ours is an address here.
            let alike = |own: &str, their: &str| {
                own == their || (ours.symbol == "cuFileGetStatsL3" && their == "*mut CUfileStatsLevel3_t")
            };
            let same = own.len() == arguments.len() && own.iter().zip(arguments).all(|(a, b)| alike(a, b));
            if !same || own_result != *result {
                findings.fail(
                    CRATE,
                    format_args!(
                        "{} is ({}) -> {own_result} here, ({}) -> {result} there",
                        ours.symbol,
                        own.join(", "),
                        arguments.join(", ")
                    ),
                );
            }
        }
    }

    fn layouts(bound: &Bound, findings: &mut Findings) {
        let mut check = |what: String, ours: u64, theirs: Option<&u64>| {
            if theirs != Some(&ours) {
                findings.fail(CRATE, format_args!("{what} is {ours} here, {theirs:?} in the header"));
            }
        };
        for ours in declared::LAYOUTS {
            check(format!("the size of {}", ours.name), ours.size as u64, bound.sizes.get(ours.name));
            check(format!("the alignment of {}", ours.name), ours.align as u64, bound.aligns.get(ours.name));
            for (field, offset) in ours.fields {
                let key = (ours.name.to_owned(), (*field).to_owned());
                check(format!("{}::{field}", ours.name), *offset as u64, bound.offsets.get(&key));
            }
        }
        for (name, field, offset) in stats::LAYOUT {
            let key = ((*name).to_owned(), (*field).to_owned());
            check(format!("{name}::{field}"), *offset as u64, bound.offsets.get(&key));
        }
    }

    fn constants(bound: &Bound, findings: &mut Findings) {
        let ours = declared::constants();
        for (kind, name, value) in &ours {
            let theirs = bound.numbers.get(&((*kind).to_owned(), name.clone()));
            if theirs != Some(&u64::from(*value)) {
                findings.fail(CRATE, format_args!("{name} is {value} here, {theirs:?} in the header"));
            }
        }
        // A code that the header has and the crate does not would be an unknown one to its users.
        for (kind, name) in bound.numbers.keys().filter(|(kind, _)| kind == "CUfileOpError") {
            if !ours.iter().any(|(_, own, _)| own == name) {
                findings.fail(CRATE, format_args!("the header has {kind} {name}, which is missing here"));
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn bindgens_text_is_read() {
            let bound = Bound::read(
                "extern \"C\" { pub fn cuFileRead(\n fh: CUfileHandle_t,\n p: *mut ::std::os::raw::c_void, n: off_t,\n) -> isize;\n pub fn cuFileD(fh: X); }\n\
                 [\"Size of E\"][::std::mem::size_of::<E>() - 8usize]; [\"Offset of field: E::cu_err\"][::std::mem::offset_of!(E, cu_err) - 4usize];\n\
                 impl CUfileOpError { pub const CU_FILE_SUCCESS: CUfileOpError = CUfileOpError(0); } pub const F: u32 = 8;",
            );
            let read = &bound.functions["cuFileRead"];
            assert_eq!(
                (read.0.join("|"), read.1.as_str()),
                ("CUfileHandle_t|*mut c_void|i64".into(), "isize")
            );
            assert_eq!(bound.functions["cuFileD"], (vec!["X".to_owned()], "()".to_owned()));
            assert_eq!(bound.sizes["E"], 8);
            assert_eq!(bound.offsets[&("E".into(), "cu_err".into())], 4);
            assert_eq!(bound.numbers[&("CUfileOpError".into(), "CU_FILE_SUCCESS".into())], 0);
            assert_eq!(bound.numbers[&(String::new(), "F".into())], 8);
        }

        #[test]
        fn every_kind_of_drift_is_found() {
            let mut findings = Findings::default();
            let empty = Bound::default();
            signatures(&empty, &mut findings);
            layouts(&empty, &mut findings);
            constants(&empty, &mut findings);
            let all = declared::SIGNATURES.len() + declared::constants().len();
            assert!(findings.failures().len() > all, "{}", findings.failures().len());
        }
    }
}
