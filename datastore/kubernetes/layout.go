package kubernetes

import (
	"crypto/sha256"
	"crypto/sha3"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
)

// layout is how objects are kept as custom resources: in which group, under which names, and in which form. There are two:
// the native one, group projectcalico.org/v3, whose resources are the objects as they are; and the classic one, group
// crd.projectcalico.org/v1 (classic.go), which hides the metadata in an annotation.
type layout struct {
	group   schema.GroupVersion
	client  rest.Interface
	classic bool
}

// The kinds that are kept in another way than the rest.
const (
	kindBlock    = "IPAMBlock"
	kindAffinity = "BlockAffinity"
	kindHandle   = "IPAMHandle"
	kindConfig   = "IPAMConfiguration"

	kindNode     = "Node"
	kindEndpoint = "WorkloadEndpoint"
	kindProfile  = "Profile"
	kindPolicy   = "NetworkPolicy"
)

// isIPAM tells whether objects of a kind are marked before they are deleted.
func isIPAM(kind string) bool { return kind == kindBlock || kind == kindAffinity || kind == kindHandle }

// resource is what a kind is called in paths, and kindName in documents.
func (l *layout) resource(kind api.Kind) string {
	if l.classic && kind.Name == kindConfig {
		return "ipamconfigs"
	}
	return kind.Plural
}

func (l *layout) kindName(kind api.Kind) string {
	if l.classic && kind.Name == kindConfig {
		return "IPAMConfig"
	}
	return kind.Name
}

// names are what the resource of an object may be called, the usual name first. The error says what is wrong with the name.
func (l *layout) names(kind api.Kind, key api.Key) ([]string, error) {
	var name string
	switch kind.Name {
	case kindBlock:
		cidr, err := canonical(key.Name)
		if err != nil {
			return nil, err
		}
		name = dashed(cidr)
	case kindAffinity:
		_, owner, cidr, err := api.ParseAffinityName(key.Name)
		if err != nil {
			return nil, err
		}
		name = affinityName(owner, cidr)
	case kindHandle: // the true id is in the spec
		name = strings.ToLower(key.Name)
	default:
		name = key.Name
	}
	if wrong := path.IsValidPathSegmentName(name); len(wrong) > 0 {
		return nil, fmt.Errorf("name %q %s; choose another", key.Name, wrong[0])
	}
	if l.classic && isPolicy(kind.Name) { // names of policies once began with their tier's
		return []string{name, defaultTierPrefix + name}, nil
	}
	return []string{name}, nil
}

// checkKey judges what every key must have.
func checkKey(kind api.Kind, key api.Key) error {
	switch {
	case key.Name == "":
		return errors.New("the name is empty; set metadata.name")
	case kind.Namespaced && key.Namespace == "":
		return errors.New("the namespace is empty; set metadata.namespace")
	case !kind.Namespaced && key.Namespace != "":
		return fmt.Errorf("%s objects have no namespace; remove metadata.namespace %q", kind.Name, key.Namespace)
	}
	return nil
}

// canonical parses a CIDR and insists on the one spelling that names an object.
func canonical(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is not a CIDR; write it as 10.9.0.4/30", s)
	}
	if c := p.Masked().String(); c != s {
		return p, fmt.Errorf("CIDR %q is not in canonical form; write %q", s, c)
	}
	return p, nil
}

// dashed is a CIDR as a name of a resource: 10-9-0-4-30.
func dashed(cidr netip.Prefix) string {
	return strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(api.BlockName(cidr))
}

// The longest name that an affinity has, and the digits of a hash in one that had to be shortened to it.
const (
	longestName = 252
	hashDigits  = 11
)

// affinityName is the name of an affinity's resource: owner and CIDR, or, where that would be too long, the owner cut short
// and a hash of the whole.
func affinityName(owner string, cidr netip.Prefix) string {
	of := dashed(cidr)
	if name := owner + "-" + of; len(name) <= longestName {
		return name
	}
	sum := sha256.Sum256([]byte(owner + "+" + of))
	return owner[:longestName-len(of)-hashDigits-2] + "-" + of + "-" + hex.EncodeToString(sum[:])[:hashDigits]
}

// Labels of affinities, by which those of a node are found.
const (
	labelHostHash     = "projectcalico.org/hostname-hash"
	labelAffinityType = "projectcalico.org/affinity-type"
	labelIPVersion    = "projectcalico.org/ip-version"
)

// label gives an affinity its labels.
func label(a *api.BlockAffinity) {
	if a.Labels == nil {
		a.Labels = map[string]string{}
	}
	kind, version := a.Spec.Type, "4"
	if kind == "" {
		kind = api.AffinityHost
	}
	if strings.Contains(a.Spec.CIDR, ":") {
		version = "6"
	}
	a.Labels[labelHostHash], a.Labels[labelAffinityType], a.Labels[labelIPVersion] = hostHash(a.Spec.Node), string(kind), version
}

// hostHash is the name of an owner of blocks as the value of a label, which the name itself may be too long for.
func hostHash(owner string) string {
	sum := sha3.Sum256([]byte(owner))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])
}

// encode is the document to store an object as, under a name.
func (l *layout) encode(kind api.Kind, o api.Object, name string) ([]byte, error) {
	o = o.DeepCopyObject().(api.Object)
	o.SetUID("") // the server's; the resourceVersion says all that it would
	o.SetManagedFields(nil)
	if a, ok := o.(*api.BlockAffinity); ok {
		label(a)
	}
	plain := o.GetName()
	o.SetName(name)
	data, err := api.Encode(o)
	if err == nil && l.classic {
		data, err = toClassic(l.kindName(kind), plain, data)
	}
	if err != nil {
		return nil, fmt.Errorf("encoding it: %w", err)
	}
	return data, nil
}

// decode reads a document. With an error the key may be all that is known, if that much is.
func (l *layout) decode(kind api.Kind, d *document) (item, error) {
	data := d.raw
	it := item{key: api.Key{Kind: kind.Name, Namespace: d.Namespace, Name: d.Name}}
	if isIPAM(kind.Name) {
		it.key.Name = "" // until the spec has been read
	}
	if l.classic {
		name, converted, err := fromClassic(kind, d)
		if err != nil {
			return it, err
		}
		data = converted
		if !isIPAM(kind.Name) {
			it.key.Name = name
		}
	}
	o, err := api.DecodeStored(kind, data)
	if err != nil {
		return it, err
	}
	o.SetManagedFields(nil)
	switch o := o.(type) {
	case *api.IPAMBlock:
		it.key.Name, it.ended = spelled(o.Spec.CIDR), o.Spec.Deleted
	case *api.BlockAffinity:
		kind := o.Spec.Type
		if kind == "" {
			kind = api.AffinityHost
		}
		it.key.Name, it.ended = string(kind)+"/"+o.Spec.Node+"/"+spelled(o.Spec.CIDR), o.Spec.Deleted
	case *api.IPAMHandle:
		it.key.Name, it.ended = o.Spec.HandleID, o.Spec.Deleted
	}
	o.SetName(it.key.Name)
	it.object = o
	return it, nil
}

// spelled is a CIDR in the one spelling that names an object, if it is one.
func spelled(cidr string) string {
	if p, err := netip.ParsePrefix(cidr); err == nil {
		return api.BlockName(p)
	}
	return cidr
}
