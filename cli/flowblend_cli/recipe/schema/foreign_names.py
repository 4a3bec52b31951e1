"""Foreign names: what A1111, ComfyUI, Wan2GP, musubi-tuner, SwarmUI and InvokeAI call our keys.

Also paths as they are written on other systems, or for a shell.
"""

from __future__ import annotations

import re

# By the name without case and punctuation: a key of ours, what to use, or why it is nowhere.
_NAMES = {
    "num_inference_steps": (
        "steps samplesteps samplingsteps inferencesteps numsteps nsteps infersteps "
        "stepcount ddimsteps"
    ),
    "guidance_scale": (
        "cfg cfgscale guidance guidancescale guidescale scale cfgstrength "
        "unconditionalguidancescale sampleguidescale"
    ),
    "guidance_scale_2": "guidance2 guidance2scale cfg2 guidancescalehighnoise guidescale2",
    "true_cfg_scale": "truecfg truecfgscale",
    "negative_prompt": "negative negativeprompt nprompt neg uc uncond negativeprompts negprompt",
    "num_frames": (
        "length frames framecount numframes videolength nframes framenum videoframes "
        "txt2vidframes text2videoframes totalframes maxframes"
    ),
    "width and height": "size resolution videosize imagesize dimensions aspectratio sidelength",
    "width": "w imagewidth videosizewidth",
    "height": "h imageheight videosizeheight",
    "seeds of a [[scene]]": "seed noiseseed randomseed seeds baseseed",
    "seeds or repeats of a [[scene]]: one job makes one file": (
        "niter batchcount batchsize numimages nsamples images numimagesperprompt "
        "numvideosperprompt numvideos iterations generations"
    ),
    "scheduler": (
        "sampler samplername samplerindex samplermethod samplesolver solver schedule "
        "schedulername noiseschedule scheduletype schedulertype"
    ),
    "flow_shift": "shift flowshift sampleshift discreteflowshift sigmashift timeshift",
    "fps in [output]": "fps framerate framespersecond outputfps videofps forcefps",
    "crf": "videocodeccrf videoquality",
    "strength": (
        "denoise denoising denoisingstrength denoisestrength imgstrength creativity "
        "initimagecreativity"
    ),
    "image of a [[scene]]": (
        "initimage startimage firstframe imagestart startframe inputimage imagepath imgpath "
        "refimage imageprompt firstimage videoinitimage sourceimage"
    ),
    "here a picture to end with isn't supported": (
        "endimage lastframe imageend endframe endimagepath lastimage"
    ),
    "pipeline": (
        "model checkpoint ckpt ckptname ckptpath modelname modelpath basemodel "
        "sdmodelcheckpoint sdmodelname unet unetname diffusionmodel dit ditpath ckptdir "
        "pretrainedmodel pretrainedmodelnameorpath modelid repo repoid modeltype"
    ),
    "small": "smallmodel draftmodel",
    "pipeline in [model], which brings its own": (
        "vae vaename vaepath textencoder textencoderpath clip clipname t5 t5path tokenizer"
    ),
    "[model.adapters], and adapters of a [[blend.stage]]": (
        "lora loras loraweight loraweights loramultiplier loraname loranames activatedloras "
        "lorasmultipliers lorastrength lorascale"
    ),
    "dtype": "precision torchdtype weightdtype mixedprecision fp16 bf16 fp8",
    "offload": "offloading cpuoffload offloadmodel lowvram medvram blockstoswap blockswap",
    "output_dir": (
        "output outdir outputdir outputpath outputfolder savepath savedir outpath "
        "savefolder outputdirectory out"
    ),
    "filename": "outputname filenameprefix savename outfile outputfile filenames",
    "container": "fileformat outputformat imageformat format videoformat",
    "prompt of a [[scene]]": "prompt prompts positive positiveprompt text caption",
    "attention_backend of a [[blend.stage]]": (
        "attention attnmode attentionmode xformers sageattention"
    ),
    "cache of a [[blend.stage]]": "teacache tcache teacachethreshold firstblockcache magcache",
    "scale in [output], which repeats whole pixels": (
        "upscale upscaler upscaleby spatialupsampling resizescale"
    ),
    "here no layers of text encoders are skipped": "clipskip clipstopatlastlayers",
    "here there is no second pass": (
        "hires hiresfix enablehr hrscale hrupscaler hrsteps hrsecondpasssteps refiner "
        "refinermodel refinersteps refinerswitchat refinerupscale refinercontrolpercentage "
        "restorefaces facerestoration"
    ),
    "here pictures aren't made to be tiled": "tiling seamless",
    "here nothing takes it": (
        "eta ensd subseed subseedstrength variationseed variationseedstrength sigmachurn "
        "styles style"
    ),
}
_TARGETS = {name: target for target, names in _NAMES.items() for name in names.split()}
_PLAIN = re.compile(r"[^a-z0-9]+")

_VARIABLE = re.compile(r"\$(?:\{\w+\}|[A-Za-z_]\w*|\()|%[A-Za-z_]\w*%|\$env:\w+")
_DRIVE = re.compile(r"([A-Za-z]):(?:[\\/]|\Z|(?=[^\\/]))(.*)", re.DOTALL)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def our_name(key: str) -> str | None:
    """What a key of another program is called here.

    Args:
        key: The key as it was written.

    Returns:
        A key of ours; in words what to use, or, from "here" on, why nothing takes its place; None
        for a name that no program known here has.
    """
    return _TARGETS.get(_PLAIN.sub("", key.casefold()))


def path_problem(path: str) -> str | None:
    """What is wrong with a folder's name that a shell or another system would understand.

    Args:
        path: The name as it was written.

    Returns:
        What to write instead; None where nothing is wrong.
    """
    found = _VARIABLE.search(path)
    if found is not None:
        return f"{found.group()} isn't expanded: write the whole path, got {path!r}"
    if path.startswith("~"):
        return f"~ isn't expanded: write the whole path, got {path!r}"
    if _ADDRESS.match(path):
        return f"is an address: write a folder of this machine, got {path!r}"
    drive = _DRIVE.fullmatch(path)
    if drive is not None:
        inner = drive[2].replace("\\", "/").strip("/")
        return (
            f"is a path of Windows: write a folder of this system, such as "
            f"/mnt/{drive[1].lower()}/{inner} under WSL, got {path!r}"
        )
    if path.startswith(("\\\\", "//")):
        return (
            "is a network share: mount it, and write the folder that it is mounted at, such as "
            f"/mnt/{path.replace(chr(92), '/').strip('/').rpartition('/')[2] or 'share'}, "
            f"got {path!r}"
        )
    if "\\" in path:
        return f"has a backslash: write / between folders, got {path!r}"
    return None
