// Package tools has no code: its go.mod says with which kustomize and helm the manifests are checked. It is a module of its own,
// so that the project depends on neither.
package tools
