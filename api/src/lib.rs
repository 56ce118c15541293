//! The Kubernetes-facing types: custom resources, labels, annotations
