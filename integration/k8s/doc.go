// Package k8s runs a real control plane of Kubernetes for tests: etcd as distributions ship it, and kube-apiserver of a
// release, built from its Go module once and kept in the user's cache directory. It needs no root, no images and no
// network but for that first build.
//
// The modules that kube-apiserver, and the kube-proxy that tests run on nodes, are built from are those of the folder control,
// which is a module of its own, so that the project depends on none of them.
package k8s
