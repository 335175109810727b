// Package storm puts a cluster's typhas through what can befall them, with a judge: real etcd, three real typha processes and
// many real clients (typha/client) on loopback, without root and namespaces, a bad network between all of them, and churn.
// What every client is sent is judged while it comes (package history), and at the end every view must be what is computed from
// scratch from the datastore.
//
// The storms are tests with the build tag storm: make storm, and a short share of them in make test.
package storm
