package kubernetes

// The kinds under which pods and namespaces of Kubernetes are kept beside our objects: a pod as the endpoint that it has or is to
// have, a namespace as a profile with nothing but its annotations.
const (
	KindPod       = "KubernetesPod"
	KindNamespace = "KubernetesNamespace"
)

// AnnotationMirror of a pod that kubelet has from a file is the uid by which kubelet, and so the runtime, knows it; the object in
// the API is only its mirror, with a uid of its own.
const AnnotationMirror = "kubernetes.io/config.mirror"
