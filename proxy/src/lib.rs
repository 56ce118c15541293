//! The sidecar proxy: the data path of the mesh
