package agent

import (
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// refusals are the single objects that failed; only tells whether nothing else did, so that all the rest is in the kernel.
func refusals(err error) (objects []dataplane.Object, only bool) {
	switch e := err.(type) { //nolint:errorlint // each part of the whole tree is asked about
	case nil:
		return nil, true
	case *dataplane.ObjectError:
		return []dataplane.Object{e.Object}, true
	case interface{ Unwrap() []error }:
		only = true
		for _, part := range e.Unwrap() {
			more, onlyThere := refusals(part)
			objects, only = append(objects, more...), only && onlyThere
		}
		return objects, only
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return refusals(inner)
		}
	}
	return nil, false
}

// mayConcern tells whether the firewall of a workload may not be in place as long as the kernel refuses an object. Chains and
// sets of policies are no such objects: where they are refused they drop, so that who is under the policy is closed, and all
// others are as they should be. Neither are the entries of other interfaces.
func mayConcern(o dataplane.Object, iface string) bool {
	words := strings.Fields(o.Key)
	name := words[len(words)-1]
	switch {
	case o.Kind != dataplane.KindSet:
		return !desired.OfPolicies(name)
	case len(words) == 3: // the entry of an interface in a map: "ip cali-to-wl-dispatch cali1"
		return name == iface
	}
	_, ofPolicies := model.SetID(name)
	return !ofPolicies
}
