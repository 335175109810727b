package server

import (
	"crypto/sha1" //nolint:gosec // a name that users know is derived with it; nothing is protected by it
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"unicode"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// CNI_ARGS that kubelet passes (spec §6.2).
const (
	argNamespace = "K8S_POD_NAMESPACE"
	argPod       = "K8S_POD_NAME"
	argUID       = "K8S_POD_UID"
)

const (
	interfacePrefix  = "cali"
	defaultNamespace = "default"
)

// What the CNI specification, and Linux, take for names.
const (
	longestID        = 255
	longestInterface = 15
)

var identifier = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

func notInInterface(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) }

// identify says which endpoint an attachment is: by pod under Kubernetes, by container elsewhere (spec §4.1, §6.2).
func identify(at *felixv1.Attachment, args map[string]string) (state.Endpoint, error) {
	if at.GetNetwork() == "" || at.GetContainerId() == "" || at.GetInterface() == "" {
		return state.Endpoint{}, fmt.Errorf("attachment %v lacks network, container id or interface", at)
	}
	// A container's id begins the name of an interface and of a file, and becomes part of a handle.
	if len(at.GetContainerId()) > longestID || !identifier.MatchString(at.GetContainerId()) {
		return state.Endpoint{}, fmt.Errorf("container id %.64q is none: it begins with a letter or digit, goes on with these, _, . and -, and has at most %d characters", at.GetContainerId(), longestID)
	}
	if len(at.GetNetwork()) > longestID || !identifier.MatchString(at.GetNetwork()) {
		return state.Endpoint{}, fmt.Errorf("network %.64q is none: it begins with a letter or digit, goes on with these, _, . and -, and has at most %d characters", at.GetNetwork(), longestID)
	}
	if name := at.GetInterface(); len(name) > longestInterface || name == "." || name == ".." || strings.ContainsFunc(name, notInInterface) {
		return state.Endpoint{}, fmt.Errorf("interface %.64q is none: it has at most %d characters, and no slash, colon or space", name, longestInterface)
	}
	e := state.Endpoint{
		Network: at.GetNetwork(), ContainerID: at.GetContainerId(), UID: args[argUID],
		Namespace: defaultNamespace,
	}
	namespace, pod := args[argNamespace], args[argPod]
	if namespace != "" && pod != "" {
		sum := sha1.Sum([]byte(namespace + "." + pod)) //nolint:gosec // see above
		e.Namespace, e.Pod = namespace, pod
		e.Interface = interfacePrefix + hex.EncodeToString(sum[:])[:11]
		e.ID = view.EndpointID{Orchestrator: "k8s", Workload: namespace + "/" + pod, Endpoint: at.GetInterface()}
		return e, nil
	}
	e.Interface = interfacePrefix + at.GetContainerId()[:min(11, len(at.GetContainerId()))]
	e.ID = view.EndpointID{Orchestrator: "cni", Workload: defaultNamespace + "/" + at.GetContainerId(), Endpoint: at.GetInterface()}
	return e, nil
}

// owner are the attributes that IPAM keeps beside the handle; typha adds node and time.
func owner(e state.Endpoint) map[string]string {
	if e.Pod == "" {
		return nil
	}
	return map[string]string{"pod": e.Pod, "namespace": e.Namespace}
}

// reported are the owner's attributes of an endpoint that felix wires, and so reports as long as it lives: an address whose
// endpoint nobody reports any more can be collected.
func reported(e state.Endpoint) map[string]string {
	out := map[string]string{api.OwnerEndpoint: e.ID.String()}
	maps.Copy(out, owner(e))
	return out
}
