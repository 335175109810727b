package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FelixParameter is one field of FelixConfigurationSpec, for those who list or set parameters by name.
//
// +kubebuilder:object:generate=false
type FelixParameter struct {
	Name    string // as in documents: "vxlanVNI"
	Default string // what holds if it is not set, in the form that ParseFelixParameter takes; empty if nothing does

	index []int
	tag   reflect.StructTag
}

// FelixParameters lists all parameters in the order of their declaration.
func FelixParameters() []FelixParameter {
	var list []FelixParameter
	for _, f := range reflect.VisibleFields(reflect.TypeFor[FelixConfigurationSpec]()) {
		if f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		list = append(list, FelixParameter{Name: name, Default: f.Tag.Get("default"), index: f.Index, tag: f.Tag})
	}
	return list
}

// EffectiveFelix is the configuration that holds on a node, given the layers that apply to it, the widest first: the
// cluster's, those that select the node, its own. Every parameter that has a default is set; enumerations are in their
// documented spelling; nodeSelector is gone. The layers are not changed.
func EffectiveFelix(layers ...*FelixConfigurationSpec) *FelixConfigurationSpec {
	out := &FelixConfigurationSpec{}
	effective := reflect.ValueOf(out).Elem()
	for _, p := range FelixParameters() {
		field := effective.FieldByIndex(p.index)
		if p.Default != "" {
			if err := setParameter(field, p.Default); err != nil {
				panic(fmt.Sprintf("api: default of %s: %v", p.Name, err)) // the defaults are in this package; a test sets them all
			}
		}
		for _, layer := range layers {
			if v := reflect.ValueOf(layer.DeepCopy()).Elem().FieldByIndex(p.index); !v.IsZero() {
				field.Set(v)
			}
		}
		p.canonical(field)
	}
	if out.FailsafeInboundHostPorts == nil {
		out.FailsafeInboundHostPorts = new(DefaultFailsafeInbound())
	}
	if out.FailsafeOutboundHostPorts == nil {
		out.FailsafeOutboundHostPorts = new(DefaultFailsafeOutbound())
	}
	out.NodeSelector = nil
	return out
}

// SetFelixParameter sets one parameter from text, as an environment variable or a file gives it. The name is taken in
// any case. Durations are Go durations ("90s"), or plain numbers of seconds; lists are separated by commas. The value
// "none", in any case, makes the parameter empty.
func SetFelixParameter(s *FelixConfigurationSpec, name, value string) error {
	for _, p := range FelixParameters() {
		if !strings.EqualFold(p.Name, name) {
			continue
		}
		field := reflect.ValueOf(s).Elem().FieldByIndex(p.index)
		if strings.EqualFold(value, "none") {
			field.SetZero()
			if field.Kind() == reflect.Pointer && field.Type().Elem().Kind() == reflect.Slice {
				field.Set(reflect.New(field.Type().Elem())) // an empty list says none; no list says the default
				field.Elem().Set(reflect.MakeSlice(field.Type().Elem(), 0, 0))
			}
			return nil
		}
		fresh := reflect.New(field.Type()).Elem()
		if err := setParameter(fresh, value); err != nil {
			return Error{Field: p.Name, Value: value, Reason: "cannot be read: " + err.Error(), Fix: "write " + p.form()}
		}
		var c checker
		p.check(&c, "", fresh)
		if err := c.err(); err != nil {
			return err
		}
		field.Set(fresh)
		p.canonical(field)
		return nil
	}
	return Error{Field: name, Reason: "is not a parameter of felix", Fix: "see the fields of FelixConfiguration"}
}

// form describes the values of a parameter.
func (p FelixParameter) form() string {
	switch {
	case p.tag.Get("oneof") != "":
		return strings.ReplaceAll(p.tag.Get("oneof"), " ", " or ")
	case p.Default != "":
		return "a value like " + p.Default
	}
	return "a value of the field's type"
}

// setParameter reads text into a field.
func setParameter(field reflect.Value, text string) error {
	if field.Kind() == reflect.Pointer {
		v := reflect.New(field.Type().Elem())
		if err := setParameter(v.Elem(), text); err != nil {
			return err
		}
		field.Set(v)
		return nil
	}
	switch v := field.Addr().Interface().(type) {
	case *metav1.Duration:
		if seconds, err := strconv.ParseFloat(text, 64); err == nil {
			v.Duration = time.Duration(seconds * float64(time.Second))
			return nil
		}
		d, err := time.ParseDuration(text)
		v.Duration = d
		return err
	case *RouteTableIDRange:
		low, high, ok := strings.Cut(text, "-")
		if !ok {
			return fmt.Errorf("%q is not a range like 1-250", text)
		}
		var err1, err2 error
		v.Min, err1 = strconv.Atoi(low)
		v.Max, err2 = strconv.Atoi(high)
		if err1 != nil || err2 != nil {
			return fmt.Errorf("%q is not a range like 1-250", text)
		}
		return nil
	case *ProtoPort:
		return v.parse(text)
	case json.Unmarshaler: // Port, DSCP: numbers and strings alike are read from a string
		quoted, err := json.Marshal(text)
		if err != nil {
			return err
		}
		return v.UnmarshalJSON(quoted)
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString(text)
	case reflect.Bool:
		b, err := parseBool(text)
		field.SetBool(b)
		return err
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 0, 64)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		field.SetInt(n)
	case reflect.Slice:
		parts := strings.Split(text, ",")
		list := reflect.MakeSlice(field.Type(), len(parts), len(parts))
		for i, part := range parts {
			if err := setParameter(list.Index(i), strings.TrimSpace(part)); err != nil {
				return err
			}
		}
		field.Set(list)
	default:
		return fmt.Errorf("it cannot be set from text")
	}
	return nil
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "1", "yes", "y", "t":
		return true, nil
	case "false", "0", "no", "n", "f":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", text)
}

// parse reads port, protocol:port or protocol:network:port, an IPv6 network in brackets.
func (p *ProtoPort) parse(text string) error {
	last := strings.LastIndex(text, ":")
	port, err := ParsePort(text[last+1:])
	if err != nil || port.IsNamed() || port.First != port.Last {
		return fmt.Errorf("%q is not a port like 22, tcp:22 or tcp:10.0.0.0/8:22", text)
	}
	*p = ProtoPort{Protocol: string(ProtocolTCP), Port: port.First}
	if last < 0 {
		return nil
	}
	protocol, network, limited := strings.Cut(text[:last], ":")
	p.Protocol = string(ParseProtocol(protocol))
	if limited {
		p.Net = strings.TrimSuffix(strings.TrimPrefix(network, "["), "]")
	}
	return nil
}

// canonical gives an enumeration its documented spelling.
func (p FelixParameter) canonical(field reflect.Value) {
	choices := strings.Fields(p.tag.Get("oneof"))
	if len(choices) == 0 {
		return
	}
	if field.Kind() == reflect.Pointer {
		if field.IsNil() {
			return
		}
		field = field.Elem()
	}
	for _, choice := range choices {
		if strings.EqualFold(choice, field.String()) {
			field.SetString(choice)
		}
	}
}

// parameters checks every field against its tags.
func (c *checker) parameters(spec path, s *FelixConfigurationSpec) {
	v := reflect.ValueOf(s).Elem()
	for _, p := range FelixParameters() {
		if field := v.FieldByIndex(p.index); !field.IsZero() {
			p.check(c, spec, field)
		}
	}
}

func (p FelixParameter) check(c *checker, spec path, field reflect.Value) {
	at := spec.at(p.Name)
	if field.Kind() == reflect.Pointer {
		if field.IsNil() {
			return
		}
		field = field.Elem()
	}
	switch v := field.Interface().(type) {
	case metav1.Duration:
		c.duration(at, &v)
	case Port:
		c.numericPort(at, v)
	case DSCP:
		if _, ok := v.Number(); !ok {
			c.bad(at, string(v), "is not a DSCP", "write 0 to 63, or a name such as EF, AF11 or CS3")
		}
	case int:
		p.checkNumber(c, at, int64(v))
	case int64:
		p.checkNumber(c, at, v)
	case string:
		p.checkText(c, at, v)
	case []string:
		for i, item := range v {
			p.checkText(c, at.index(i), item)
		}
	case BPFConntrackTimeouts:
		v.check(c, at)
	}
	if most, err := strconv.Atoi(p.tag.Get("maxitems")); err == nil && field.Kind() == reflect.Slice {
		c.atMost(at, field.Len(), most)
	}
}

func (p FelixParameter) checkNumber(c *checker, at path, n int64) {
	low, err1 := strconv.ParseInt(p.tag.Get("min"), 10, 64)
	high, err2 := strconv.ParseInt(p.tag.Get("max"), 10, 64)
	switch {
	case err1 == nil && err2 == nil:
		between(c, at, n, low, high)
	case err1 == nil && n < low:
		c.bad(at, n, "is out of range", fmt.Sprintf("write a number of at least %d", low))
	}
}

func (p FelixParameter) checkText(c *checker, at path, s string) {
	if choices := strings.Fields(p.tag.Get("oneof")); len(choices) > 0 {
		c.choice(at, s, choices)
	}
	if pattern := p.tag.Get("pattern"); pattern != "" && !regexp.MustCompile(pattern).MatchString(s) {
		c.bad(at, s, "is not of the form that this field takes", "write "+p.form()+" (pattern "+pattern+")")
	}
	if most, err := strconv.Atoi(p.tag.Get("maxlen")); err == nil && len(s) > most {
		c.bad(at, s, fmt.Sprintf("has %d characters", len(s)), fmt.Sprintf("write at most %d", most))
	}
	switch p.tag.Get("form") {
	case "regexp":
		c.regexp(at, s)
	case "ip4":
		c.optionalIP(at, s, ipv4)
	case "ip6":
		c.optionalIP(at, s, ipv6)
	case "cidr":
		c.cidr(at, s, anyFamily)
	case "cidr4":
		c.cidr(at, s, ipv4)
	case "iface":
		c.iface(at, s)
	case "ifaceFilter":
		if !interfaceFilter.MatchString(s) {
			c.bad(at, s, "is not a filter of interfaces", "write 1 to 15 letters, digits, : . _ + -; a + at the end stands for any more")
		}
	}
}

func (t *BPFConntrackTimeouts) check(c *checker, at path) {
	v := reflect.ValueOf(t).Elem()
	for i := range v.NumField() {
		timeout, _ := reflect.TypeAssert[*BPFConntrackTimeout](v.Field(i))
		if timeout == nil || *timeout == "Auto" {
			continue
		}
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if d, err := time.ParseDuration(string(*timeout)); err != nil || d < 0 {
			c.bad(at.at(name), string(*timeout), "is not a timeout", "write a duration such as 90s, or Auto")
		}
	}
}
