package api

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Labels and annotations that have a meaning.
const (
	LabelTier           = "projectcalico.org/tier"           // of a policy; set by Default
	LabelNamespace      = "projectcalico.org/namespace"      // of an endpoint
	LabelServiceAccount = "projectcalico.org/serviceaccount" // of an endpoint
	LabelOrchestrator   = "projectcalico.org/orchestrator"   // of an endpoint
)

// object checks what every kind has in common; name is the kind's rule for names.
func (c *checker) object(o Object, name func(c *checker, at path, s string)) {
	meta := path("metadata")
	if o.GetName() == "" {
		c.bad(meta.at("name"), nil, "is missing", "give the object a name")
	} else {
		name(c, meta.at("name"), o.GetName())
	}
	kind := KindOf(o)
	switch ns := o.GetNamespace(); {
	case !kind.Namespaced && ns != "":
		c.bad(meta.at("namespace"), ns, "is given, but a "+kind.Name+" belongs to no namespace", "remove it")
	case kind.Namespaced && ns == "":
		c.bad(meta.at("namespace"), nil, "is missing", "say which namespace the "+kind.Name+" belongs to")
	case kind.Namespaced && validation.IsDNS1123Label(ns) != nil:
		c.bad(meta.at("namespace"), ns, "is not a valid namespace", "write at most 63 lower-case letters, digits and -")
	}
	c.labels(meta.at("labels"), o.GetLabels())
	c.annotations(meta.at("annotations"), o.GetAnnotations())
}

// The rules for names.

// subdomainName is the rule for most kinds.
func subdomainName(c *checker, at path, s string) { c.name(at, s) }

// labelName is the rule for tiers.
func labelName(c *checker, at path, s string) {
	if validation.IsDNS1123Label(s) != nil {
		c.bad(at, s, "is not a valid name for a tier", "write at most 63 lower-case letters, digits and -, without dots")
	}
}

// globalPolicyName is one label, or two joined by a dot.
func globalPolicyName(c *checker, at path, s string) {
	first, second, two := strings.Cut(s, ".")
	if validation.IsDNS1123Label(first) != nil || (two && validation.IsDNS1123Label(second) != nil) {
		c.bad(at, s, "is not a valid name for a policy", "write one or two parts joined by a dot, each of at most 63 lower-case letters, digits and -")
	}
}

// policyName takes also the names of policies that are made from another system's.
func policyName(c *checker, at path, s string) {
	for _, prefix := range []string{"knp.default.", "ossg.default."} {
		if rest, ok := strings.CutPrefix(s, prefix); ok && len(s) <= validation.DNS1123SubdomainMaxLength && validation.IsDNS1123Subdomain(rest) == nil {
			return
		}
	}
	globalPolicyName(c, at, s)
}

// defaultName is the rule for kinds that exist once.
func defaultName(c *checker, at path, s string) {
	if s != DefaultName {
		c.bad(at, s, "is not the name of the one object of this kind", "write name: "+DefaultName)
	}
}

// anyName leaves it to the kind.
func anyName(*checker, path, string) {}

// ValidateUpdate judges what may change: updated replaces old. It looks at the two objects alone, and assumes that both are
// valid by themselves. It returns nil or Errors.
func ValidateUpdate(old, updated Object) error {
	var c checker
	if KindOf(old).Name != KindOf(updated).Name || old.GetName() != updated.GetName() || old.GetNamespace() != updated.GetNamespace() {
		c.bad("metadata", KeyOf(updated).String(), "is not the object it replaces, "+KeyOf(old).String(), "create a new object instead")
		return c.err()
	}
	if updated.GetUID() != "" && old.GetUID() != "" && updated.GetUID() != old.GetUID() {
		c.bad("metadata.uid", string(updated.GetUID()), "is not the uid of the object that is there now: it was deleted and made anew", "read the object again and repeat the change")
	}
	if u, ok := updated.(interface{ validateUpdate(*checker, Object) }); ok {
		u.validateUpdate(&c, old)
	}
	return c.err()
}

// setLabel sets one label.
func setLabel(m *metav1.ObjectMeta, key, value string) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[key] = value
}

// setDefault fills an unset field.
func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
