package render

import (
	"strings"

	"github.com/muslin-net/muslin/node/detect"
)

// autodetection reads how a node finds its address, and returns it in the form of IP_AUTODETECTION_METHOD. Without any field it
// is none; two are one too many.
func autodetection(f field) (string, error) {
	ways := []string{"firstFound", "kubernetes", "interface", "skipInterface", "canReach", "cidrs"}
	if err := f.only(ways...); err != nil {
		return "", err
	}
	var method string
	var by field
	for _, way := range ways {
		part, err := f.child(way)
		if err != nil {
			return "", err
		}
		text, err := autodetectionBy(way, part)
		if err != nil {
			return "", err
		}
		if text == "" {
			continue
		}
		if method != "" {
			return "", part.wrong("%s is given, too; leave one of them", by.path)
		}
		method, by = text, part
	}
	if method == "" {
		return "", nil
	}
	if _, err := detect.ParseMethod(method); err != nil {
		return "", by.wrong("%w", err)
	}
	return method, nil
}

func autodetectionBy(way string, f field) (string, error) {
	if !f.there() {
		return "", nil
	}
	switch way {
	case "firstFound":
		if wanted, err := f.truth(false); err != nil || !wanted {
			return "", err
		}
		return "first-found", nil
	case "kubernetes":
		_, err := f.oneOf("", "NodeInternalIP")
		return "kubernetes-internal-ip", err
	case "cidrs":
		items, err := f.items()
		var cidrs []string
		for _, i := range items {
			cidr, err := i.cidr()
			if err != nil {
				return "", err
			}
			cidrs = append(cidrs, cidr.String())
		}
		if err == nil && len(cidrs) == 0 {
			err = f.wrong("it is empty; give a range of addresses, or leave it out")
		}
		return "cidr=" + strings.Join(cidrs, ","), err
	}
	text, err := f.text("")
	if err == nil && text == "" {
		err = f.wrong("it is empty; leave it out")
	}
	prefix := map[string]string{"interface": "interface=", "skipInterface": "skip-interface=", "canReach": "can-reach="}[way]
	return prefix + text, err
}
