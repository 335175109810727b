package etcd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// The values of the IPAM kinds are older than the API: they have no metadata, leave out what the key says, and spell some
// fields in another way. The two functions here translate between such a value and the document of the API, field by
// field on the JSON, so that fields unknown to this version pass through in both directions.

// fields is a JSON object whose values stay as they were written.
type fields map[string]json.RawMessage

var (
	jsonNull  = json.RawMessage("null")
	jsonFalse = json.RawMessage("false")
	jsonEmpty = json.RawMessage("{}")
)

// ipamDocument translates a stored value into a document of the API.
func ipamDocument(kind, name string, value []byte) ([]byte, error) {
	f, err := parseFields(value)
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindBlock:
		f.drop("sequenceNumberForAllocation", jsonEmpty) // the API leaves it out; ipamValue puts it back
		if owner, ok := f.text("hostAffinity"); ok && f.absent("affinity") {
			f.set("affinity", affinityHost+":"+owner)
		}
		delete(f, "hostAffinity")
		if f.absent("affinity") {
			delete(f, "affinity")
		}
		f.rename("affinity_claim_time", "affinityClaimTime")
	case kindAffinity:
		parts := strings.SplitN(name, "/", 3)
		if state, _ := f.text("state"); state == "" { // affinities were stored without any state once
			f.set("state", "confirmed")
		}
		f.set("type", parts[0])
		f.set("node", parts[1])
		f.set("cidr", parts[2])
	case kindHandle:
		f.set("handleID", name)
	case kindConfig:
		f.rename("strict_affinity", "strictAffinity")
		f.ensure("strictAffinity", jsonFalse)
		f.rename("auto_allocate_blocks", "autoAllocateBlocks")
		if f.absent("autoAllocateBlocks") { // the writer leaves false out, while the API's default is true
			f["autoAllocateBlocks"] = jsonFalse
		}
	}
	var doc bytes.Buffer
	fmt.Fprintf(&doc, `{"kind":%q,"apiVersion":%q,"metadata":{"name":%s},"spec":`, kind, api.GroupVersion, quote(name))
	f.write(&doc, order(kind))
	doc.WriteByte('}')
	return doc.Bytes(), nil
}

// order lists the fields of a kind's spec as the API declares them. A document in this order, without fields that are
// unknown, is decoded at half the cost, since it is what api.Encode would give.
func order(kind string) []string {
	switch kind {
	case kindBlock:
		return []string{"cidr", "affinity", "affinityClaimTime", "allocations", "unallocated", "attributes", "sequenceNumber", "sequenceNumberForAllocation", "deleted"}
	case kindAffinity:
		return []string{"state", "node", "type", "cidr", "deleted"}
	case kindHandle:
		return []string{"handleID", "block", "deleted"}
	case kindConfig:
		return []string{"strictAffinity", "maxBlocksPerHost", "autoAllocateBlocks", "kubeVirtVMAddressPersistence", "ipCooldownSeconds"}
	}
	return nil
}

// ipamValue translates a document of the API into the value to store.
func ipamValue(kind string, encoded []byte) ([]byte, error) {
	var d struct {
		Spec fields `json:"spec"`
	}
	if err := json.Unmarshal(encoded, &d); err != nil {
		return nil, fmt.Errorf("encoding it: %w", err)
	}
	f := d.Spec
	if f == nil {
		f = fields{}
	}
	switch kind {
	case kindBlock:
		f.rename("affinityClaimTime", "affinity_claim_time")
		f.ensure("affinity", jsonNull)
		f.ensure("sequenceNumberForAllocation", jsonEmpty)
		f.ensure("deleted", jsonFalse)
	case kindAffinity:
		delete(f, "type")
		delete(f, "node")
		delete(f, "cidr")
		f.ensure("deleted", jsonFalse)
	case kindHandle:
		delete(f, "handleID")
		if f.absent("block") {
			f["block"] = jsonEmpty
		}
		f.ensure("deleted", jsonFalse)
	case kindConfig:
		f.rename("strictAffinity", "strict_affinity")
		f.rename("autoAllocateBlocks", "auto_allocate_blocks")
		f.drop("strict_affinity", jsonFalse)
		f.drop("auto_allocate_blocks", jsonFalse)
	}
	return json.Marshal(f)
}

// parseFields reads a stored value. An empty one, which old affinities have, is an object without fields.
func parseFields(value []byte) (fields, error) {
	f := fields{}
	if len(bytes.TrimSpace(value)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(value, &f); err != nil {
		return nil, fmt.Errorf("it is not a JSON object: %w", err)
	}
	if f == nil {
		return nil, errors.New("it is null, not a JSON object")
	}
	return f, nil
}

// absent tells whether a field is missing or null.
func (f fields) absent(key string) bool {
	v, ok := f[key]
	return !ok || bytes.Equal(v, jsonNull)
}

// text returns a field that holds a string.
func (f fields) text(key string) (string, bool) {
	var s *string
	if err := json.Unmarshal(f[key], &s); err != nil || s == nil {
		return "", false
	}
	return *s, true
}

func (f fields) set(key, value string) { f[key] = quote(value) }

func quote(s string) json.RawMessage {
	q, _ := json.Marshal(s) // of a string, which cannot fail
	return q
}

func (f fields) rename(from, to string) {
	if v, ok := f[from]; ok {
		delete(f, from)
		f[to] = v
	}
}

// ensure sets a field that is missing.
func (f fields) ensure(key string, value json.RawMessage) {
	if _, ok := f[key]; !ok {
		f[key] = value
	}
}

// drop removes a field that has this value.
func (f fields) drop(key string, value json.RawMessage) {
	if bytes.Equal(f[key], value) {
		delete(f, key)
	}
}

// write prints the fields as a JSON object: those of the given order first, the others after them by name.
func (f fields) write(to *bytes.Buffer, order []string) {
	sep := byte('{')
	put := func(key string) {
		to.WriteByte(sep)
		to.Write(quote(key))
		to.WriteByte(':')
		to.Write(f[key])
		sep = ','
	}
	for _, key := range order {
		if _, ok := f[key]; ok {
			put(key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(order, key) {
			put(key)
		}
	}
	if sep == '{' {
		to.WriteByte(sep)
	}
	to.WriteByte('}')
}
