// Package cluster runs a whole Kubernetes on one Linux machine: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler on a machine named control, and on each worker a containerd, a kubelet and a kube-proxy of its own, with real
// containers made by runc. Machines, their wiring and what keeps programs running are the lab's (package lab): a cluster is a
// lab whose nodes are machines that run Kubernetes. So nothing of it is in this machine's network, mounts or processes, and the
// end of the lab's first process takes everything with it; only the cgroups, which the kernel keeps, are removed from outside.
//
// Programs of Kubernetes are built from its Go module at the first use (package k8s). There is no image registry: Import brings
// archives onto all workers, and one small image of a static Go program serves as pause and as every workload of tests.
//
// Up, Open and Down are the way in. A cluster comes up without a network: pods of the host's network run, others wait for one.
// Network installs Muslin from deploy/, or a bridge with host-local, which is what start times are compared with.
package cluster
