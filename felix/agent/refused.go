package agent

import (
	"errors"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane"
)

// committedOnly tells whether all that failed is single objects, so that everything else is in the kernel.
func committedOnly(err error) bool {
	if err == nil {
		return true
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the parts are what is asked about
		return !slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return !committedOnly(e) })
	}
	var object *dataplane.ObjectError
	return errors.As(err, &object)
}

// refusals are the single objects that failed.
func refusals(err error) (out []dataplane.Object) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the parts are what is asked about
		for _, part := range joined.Unwrap() {
			out = append(out, refusals(part)...)
		}
		return out
	}
	if object, ok := errors.AsType[*dataplane.ObjectError](err); ok {
		out = append(out, object.Object)
	}
	return out
}

// mayConcern tells whether the firewall of a workload may not be in place as long as the kernel refuses an object. Chains and
// sets of policies are no such objects: where they are refused they drop, so that who is under the policy is closed, and all
// others are as they should be. Neither are the entries of other interfaces.
func mayConcern(o dataplane.Object, iface string) bool {
	words := strings.Fields(o.Key)
	name := words[len(words)-1]
	if o.Kind == dataplane.KindSet && len(words) == 3 { // the entry of an interface in a map: "ip cali-to-wl-dispatch cali1"
		return name == iface
	}
	ofPolicies := []string{"cali-pi-", "cali-po-", "cali-pri-", "cali-pro-", "cali-tw-", "cali-fw-"}
	if o.Kind == dataplane.KindSet {
		ofPolicies = []string{"cali40", "cali60"}
	}
	return !slices.ContainsFunc(ofPolicies, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
