// Package suite proves what Muslin promises in Kubernetes, on a cluster of the real programs (package cluster) in which it was
// installed as users do: kubectl apply -k deploy/overlays. All tests share that cluster, one after the other.
package suite
