// Package render makes manifests: from the chart's templates and values, or from an installer's description of a cluster, which
// it turns into values. It is pure: who calls it reads and writes files.
package render

import "fmt"

// Kinds of descriptions.
const (
	konvoyVersion, konvoyKind     = "konvoy.mesosphere.io/v1beta2", "ClusterConfiguration"
	operatorVersion, operatorKind = "operator.tigera.io/v1", "Installation"
)

// Parse reads an installer's description of a cluster, one of
//
//	kind: ClusterConfiguration, apiVersion: konvoy.mesosphere.io/v1beta2
//	kind: Installation, apiVersion: operator.tigera.io/v1
//
// into the values that it asks for; what it leaves open is as in Defaults. The text may have other documents beside it. An error
// names file (as given), line, field, and what is allowed.
func Parse(file string, text []byte) (Values, error) {
	all, err := documents(file, text)
	if err != nil {
		return Values{}, err
	}
	var read func(field) (Values, error)
	var found field
	var others string
	for _, d := range all {
		version, kind := d.scalar("apiVersion"), d.scalar("kind")
		reader := map[[2]string]func(field) (Values, error){
			{konvoyVersion, konvoyKind}:     konvoy,
			{operatorVersion, operatorKind}: installation,
		}[[2]string{version, kind}]
		if reader == nil {
			if kind == konvoyKind || kind == operatorKind {
				others = fmt.Sprintf("; there is a %s of %q, whose form is not known here", kind, version)
			}
			continue
		}
		if read != nil {
			return Values{}, d.wrong("a second description of a cluster: the first is in line %d; leave one of them", found.node.Line)
		}
		read, found = reader, d
	}
	if read == nil {
		return Values{}, fmt.Errorf("%s: there is neither a %s (apiVersion %s) nor an %s (apiVersion %s) in it%s",
			file, konvoyKind, konvoyVersion, operatorKind, operatorVersion, others)
	}
	return read(found)
}

// scalar is the text of a field at the top of a document; nothing if it has none.
func (f field) scalar(name string) string {
	if c, err := f.child(name); err == nil {
		if text, err := c.text(""); err == nil {
			return text
		}
	}
	return ""
}
