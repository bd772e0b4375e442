//! Builds the wire types from the schema, without `protoc`.
//! **Invariant:** the text depends on the schema alone: no time, no path, no environment.

use std::path::{Path, PathBuf};

/// The folder of this crate.
pub fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A schema and where its generated types are checked in.
pub struct Schema {
    /// Below `proto/`.
    source: &'static str,
    types: &'static str,
}

/// Every schema: what devices see, and what only nodes see.
pub const SCHEMAS: [Schema; 2] = [
    Schema { source: "chappe/v1/chappe.proto", types: "src/wire/chappe.v1.rs" },
    Schema { source: "chappe/internode/v1/internode.proto", types: "src/wire/chappe.internode.v1.rs" },
];

impl Schema {
    /// Where the generated types are checked in.
    pub fn types_path(&self) -> PathBuf {
        crate_dir().join(self.types)
    }

    /// The text of the generated types.
    pub fn types(&self) -> String {
        let include = crate_dir().join("proto");
        let files = protox::compile([Path::new(self.source)], [include]).expect("the schema is valid");
        let requests: Vec<_> = files
            .file
            .into_iter()
            .map(|file| (prost_build::Module::from_protobuf_package_name(file.package()), file))
            .collect();
        let mut config = prost_build::Config::new();
        // Payloads slice the incoming buffer; nothing prints itself, because tokens and names are among the fields.
        config.bytes(["."]).btree_map(["."]).skip_debug(["."]);
        let modules = config.generate(requests).expect("the schema has one package");
        assert_eq!(modules.len(), 1, "one package, one file");
        modules.into_values().collect()
    }
}
