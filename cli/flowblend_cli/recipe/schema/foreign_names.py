"""Foreign names: what A1111, ComfyUI, Wan, HunyuanVideo, musubi-tuner and others call our keys.

Also paths as they are written on other systems, or for a shell.
"""

from __future__ import annotations

import re

# By the name without case and punctuation: a key of ours, what to use, or why it is nowhere.
_NAMES = {
    "num_inference_steps": (
        "steps samplesteps samplingsteps inferencesteps numsteps nsteps infersteps stepcount "
        "ddimsteps samplingstep numsamplingsteps denoisingsteps diffusionsteps"
    ),
    "guidance_scale": (
        "cfg cfgscale guidance guidancescale guidescale scale cfgstrength "
        "unconditionalguidancescale sampleguidescale embeddedguidancescale embeddedcfgscale "
        "embeddedguidance cfgguidance guidancestrength distilledguidance distilledcfgscale "
        "distilledguidancescale imagecfgscale maxguidancescale guidancescalehighnoise "
        "cfghighnoise"
    ),
    "guidance_scale_2": (
        "guidance2 guidance2scale cfg2 guidescale2 sampleguidescale2 guidancescalelownoise "
        "cfglownoise"
    ),
    "true_cfg_scale": "truecfg truecfgscale",
    "negative_prompt": ("negative negativeprompt nprompt neg uc uncond negativeprompts negprompt"),
    "num_frames": (
        "length frames framecount numframes videolength nframes framenum videoframes "
        "txt2vidframes text2videoframes totalframes maxframes targetvideolength targetframes "
        "framesnumber motionlength"
    ),
    "width and height": (
        "size resolution videosize imagesize dimensions aspectratio sidelength "
        "videoresolution modelresolution i2vresolution targetsize aspect"
    ),
    "width": "w imagewidth videosizewidth targetwidth outputwidth widthpx",
    "height": "h imageheight videosizeheight targetheight outputheight heightpx",
    "seeds of a [[scene]]": (
        "seed noiseseed randomseed seeds baseseed rngseed manualseed generator seedvalue "
        "startseed noiseseeds"
    ),
    "seeds or repeats of a [[scene]]: one job makes one file": (
        "niter batchcount batchsize numimages nsamples images numimagesperprompt "
        "numvideosperprompt numvideos iterations generations nimages samplecount numsamples "
        "videosnum batchcounts numoutputs samplesperprompt"
    ),
    "scheduler": (
        "sampler samplername samplerindex samplermethod samplesolver solver schedule "
        "schedulername noiseschedule scheduletype schedulertype flowsolver samplingmethod "
        "solvertype karras"
    ),
    "flow_shift": (
        "shift flowshift sampleshift discreteflowshift sigmashift timeshift maxshift "
        "baseshift timestepshift shiftscale modelsamplingsd3"
    ),
    "fps in [output]": "fps framerate framespersecond outputfps videofps forcefps",
    "crf": "videocodeccrf videoquality",
    "strength": (
        "denoise denoising denoisingstrength denoisestrength imgstrength creativity "
        "initimagecreativity denoisestart imagestrength initstrength img2imgstrength "
        "videostrength noiseaugstrength augmentationlevel"
    ),
    "image of a [[scene]]": (
        "initimage startimage firstframe imagestart startframe inputimage imagepath imgpath "
        "refimage imageprompt firstimage videoinitimage sourceimage initimages initimg "
        "firstframeimage startimagepath imageinput inputimages ipadapterimage"
    ),
    "here a picture to end with isn't supported": (
        "endimage lastframe imageend endframe endimagepath lastimage tailimage lastframeimage "
        "endframeimage endimg"
    ),
    "pipeline": (
        "model checkpoint ckpt ckptname ckptpath modelname modelpath basemodel "
        "sdmodelcheckpoint sdmodelname unet unetname diffusionmodel dit ditpath ckptdir "
        "pretrainedmodel pretrainedmodelnameorpath modelid repo repoid modeltype ditweight "
        "ditmodel modelbase modelcls modelfile diffusersmodel diffusionmodelpath unetpath "
        "transformer transformerpath task sdmodel basemodelpath hfmodel"
    ),
    "small": "smallmodel draftmodel",
    "pipeline in [model], which brings its own": (
        "vae vaename vaepath textencoder textencoderpath clip clipname t5 t5path tokenizer "
        "textencoder1 textencoder2 llmpath t5model vaemodel vaeprecision textencoderprecision "
        "tokenizerpath clipvision imageencoder"
    ),
    "[model.adapters], and adapters of a [[blend.stage]]": (
        "lora loras loraweight loraweights loramultiplier loraname loranames activatedloras "
        "lorasmultipliers lorastrength lorascale strengthmodel strengthclip highnoiselora "
        "lownoiselora lorapath lorafile adapter lycoris"
    ),
    "dtype": (
        "precision torchdtype weightdtype mixedprecision fp16 bf16 fp8 convertmodeldtype "
        "usefp8 fp8scaled fp8fast computedtype half usehalf modeldtype"
    ),
    "offload": (
        "offloading cpuoffload offloadmodel lowvram medvram blockstoswap blockswap "
        "usecpuoffload enablemodelcpuoffload enablesequentialcpuoffload forceoffload "
        "lowcpumemusage novram highvram imgintxtinoffloading t5cpu"
    ),
    "output_dir": (
        "output outdir outputdir outputpath outputfolder savepath savedir outpath savefolder "
        "outputdirectory out samples savevideopath resultdir resultsdir"
    ),
    "filename": (
        "outputname filenameprefix savename outfile outputfile filenames savefile "
        "savepathsuffix namesuffix outputfilename videoname savevideoname"
    ),
    "container": (
        "fileformat outputformat imageformat format videoformat savevideoformat pixfmt "
        "extension fileextension"
    ),
    "prompt of a [[scene]]": (
        "prompt prompts positive positiveprompt text caption inputprompt userprompt "
        "positiveprompts conditioning"
    ),
    "attention_backend of a [[blend.stage]]": (
        "attention attnmode attentionmode xformers sageattention attn attnbackend "
        "attentiontype flashattn flashattention useflashattention sdpa"
    ),
    "cache of a [[blend.stage]]": (
        "teacache tcache teacachethreshold firstblockcache magcache teacachethresh "
        "teacacheargs rell1thresh easycache fastercache taylorseer usecache enableteacache"
    ),
    "scale in [output], which repeats whole pixels": (
        "upscale upscaler upscaleby spatialupsampling resizescale resize outputscale"
    ),
    "here no layers of text encoders are skipped": "clipskip clipstopatlastlayers",
    "here there is no second pass": (
        "hires hiresfix enablehr hrscale hrupscaler hrsteps hrsecondpasssteps refiner "
        "refinermodel refinersteps refinerswitchat refinerupscale refinercontrolpercentage "
        "restorefaces facerestoration"
    ),
    "here pictures aren't made to be tiled": "tiling seamless",
    "here the prompt says how much moves": (
        "motionstrength motionbucketid motionscore motion motionintensity motionamplitude "
        "motionscale cameramotion camera motionlevel"
    ),
    "num_frames (frames are num_frames, and frames per second are fps in [output])": (
        "duration seconds durationseconds videoseconds numseconds durations videoduration "
        "lengthseconds"
    ),
    "boundaries of [blend]": (
        "switchstep splitstep boundarytimestep timestepboundary boundary switchat startatstep "
        "endatstep highnoisesteps lownoisesteps numstepshigh boundaryratio"
    ),
    "a [[blend.stage]] with its own guidance_scale": (
        "cfgskipmode cfgapplyratio cfgschedule guidanceinterval cfginterval startpercent endpercent"
    ),
    "small (another denoiser), in [model]": "modelsmall smalldit drafter lowmodel",
    "here every job runs on one device: device in [model] names it": (
        "ulyssessize ringsize t5fsdp ditfsdp numgpus gpuids worldsize nproc gpus devicemap "
        "gpu gpuid tensorparallel cfgparallel"
    ),
    "here text is never rewritten": (
        "usepromptextend promptextend promptextendmethod promptextendmodel "
        "promptextendtargetlang promptenhancer enhanceprompt promptrewrite rewrite userewrite "
        "magicprompt promptenhance"
    ),
    "here a video or a mask to begin with isn't supported": (
        "srcvideo srcmask srcrefimages video videopath mask maskpath maskimage maskblur "
        "controlpath controlvideo controlimagepath inpaintingfill initvideo inputvideo"
    ),
    "here nothing skips layers of a denoiser": "slglayers slgscale slgstart slgend slgmode slg",
    "here nothing takes it": (
        "cfgzerostar zerostar cfgstar nagscale apg enhanceavideo fetaargs riflex "
        "riflexfreqindex radialattention cfgrescale alwaysonscripts scriptname "
        "overridesettings sminuncond schurn stmax stmin snoise flowreverse "
        "uselinearquadraticschedule controlaftergenerate addnoise returnwithleftovernoise "
        "latentimage pingpong loopcount loop interpolate rife audio safetychecker compile "
        "torchcompile compileargs interactive fromfile ipadapterscale samplerparams "
        "trimtailframes cpunoise vaetiling vaeslicing tiledvae enablevaetiling "
        "enablevaeslicing contextoptions resizemode sendimages saveimages donotsavesamples "
        "savemetadata nometadata eta ensd subseed subseedstrength variationseed "
        "variationseedstrength sigmachurn styles style"
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
