// Package control has no code: its go.mod says which modules the control plane of Kubernetes for tests is built from.
package control
