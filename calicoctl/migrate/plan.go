package migrate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// plan is what an import does with the objects of an export.
type plan struct {
	info  *api.ClusterInformation
	write []api.Object // in the order in which they can be written
	nodes []*api.Node  // which are there already, and are given what Calico knows of them
	left  map[string]int
}

// newPlan sorts the objects, and refuses what the target could not hold, before anything is written.
func newPlan(x *Export) (*plan, error) {
	p := &plan{left: map[string]int{}}
	var wrong []string
	for _, o := range x.Objects {
		if why := leftOut(o); why != "" {
			p.left[why]++
			continue
		}
		o = o.DeepCopyObject().(api.Object)
		o.Default()
		if err := o.Validate(); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", api.KeyOf(o), err))
			continue
		}
		switch o := o.(type) {
		case *api.ClusterInformation:
			p.info = o
		case *api.Node:
			p.nodes = append(p.nodes, o)
		default:
			p.write = append(p.write, o)
		}
	}
	if p.info == nil {
		return nil, fmt.Errorf("the export has no %s; it is not of a whole datastore", information)
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("the target would refuse %d object(s); nothing has been written; correct them in the source and export again:\n%s", len(wrong), strings.Join(wrong, "\n"))
	}
	return p, nil
}

// leftOut says why an object does not come along; empty if it does.
func leftOut(o api.Object) string {
	switch o := o.(type) {
	case *api.WorkloadEndpoint:
		if o.Spec.Orchestrator == "k8s" {
			return "workload endpoints, which Kubernetes' pods are"
		}
		return "workload endpoints that are no pods: Kubernetes has no place for them"
	case *api.Profile:
		if strings.HasPrefix(o.Name, "kns.") || strings.HasPrefix(o.Name, "ksa.") {
			return "profiles, which Kubernetes' namespaces and service accounts are"
		}
		return "profiles that are of no namespace: Kubernetes has no place for them"
	case *api.NetworkPolicy:
		if strings.HasPrefix(o.Name, "knp.default.") {
			return "network policies, which Kubernetes has itself"
		}
	case *api.Lease:
		return "leases, which their holders take anew"
	case *api.LiveMigration:
		return "live migrations, which Kubernetes' objects say"
	}
	return ""
}

// remarks tells what was left out, for people.
func (p *plan) remarks() []string {
	var lines []string
	for why, n := range p.left {
		lines = append(lines, fmt.Sprintf("%d %s", n, why))
	}
	slices.Sort(lines)
	return lines
}
